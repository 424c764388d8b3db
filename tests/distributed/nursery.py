"""Starts processes that have PyTorch imported already: it takes seconds each time, and tests of replicas need many.

Reads one JSON object a line: {"words": [...]} runs a command of thumbnet, {"script": file, "words": [...]} a script,
with "env" and, for output, "out" and "err"; answers with a process id. {"poll": id} answers with the exit code or null.
"""

import gc
import json
import os
import runpy
import sys

import torch._dynamo  # noqa: F401 - DistributedDataParallel would import it, for seconds too

import thumbnet.distributed.join
import thumbnet.training.whole  # noqa: F401 - this is what takes seconds
from thumbnet.cli.main import main


def child(order: dict) -> int:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.environ.update(order["env"])
    if "script" in order:
        sys.argv = [order["script"], *order["words"]]
        runpy.run_path(order["script"], run_name="__main__")
        return 0
    sys.argv = ["thumbnet", *order["words"]]
    return main(order["words"])


def run_child(order: dict) -> None:
    code = 1
    try:
        code = child(order)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


gc.freeze()
for line in sys.stdin:
    order = json.loads(line)
    if "poll" in order:
        answer = exit_code(order["poll"])
    else:
        answer = os.fork()
        if not answer:
            run_child(order)
    print(json.dumps(answer), flush=True)
