"""`thumbnet serve`: a network behind HTTP, with a page to try it."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbnet.cli.chosen import predictor_of
from thumbnet.cli.flags import (
    WEIGHTS_IN_WORDS,
    add_checkpoint_flags,
    add_engine_flags,
    add_out_flag,
    note,
    user_path,
    whole_number,
)
from thumbnet.errors import UsageError
from thumbnet.extras import ONNX, SERVE, import_extra
from thumbnet.printing import printable

if TYPE_CHECKING:
    from thumbnet.exporting.read import OnnxClassifier


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "serve",
        help="answer what pictures show over HTTP, with a page to try it",
        description="Answer over HTTP what pictures show: a page to drop pictures on, and POST /predict for programs. "
        "A run is exported first, and that file's network answers. Only this machine can reach it unless --host says "
        "otherwise; it takes the bytes of a JPEG, PNG or WebP, never a path or an address.",
        epilog="curl --data-binary @photo.jpg http://127.0.0.1:8000/predict    Ctrl-C ends it after what is in flight.",
    )
    parser.set_defaults(parser=parser)
    parser.add_argument(
        "run_name", nargs="?", metavar="RUN|FILE.onnx", help="a run, or a file of `export` (the newest run)"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=port, default=8000, metavar="N", help="port to listen at, 0 for any (8000)")
    parser.add_argument("--max-mb", type=whole_number, default=10, metavar="N", help="largest request, in MiB (10)")
    parser.add_argument(
        "--at-once", type=whole_number, default=32, metavar="N", help="pictures in flight, more are sent away (32)"
    )
    parser.add_argument("--quiet", action="store_true", help="no line for each request")
    add_out_flag(parser)
    add_checkpoint_flags(parser)
    add_engine_flags(parser)


def port(text: str) -> int:
    """Parse a port, 0 to 65535."""
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"'{text}' is no port, 0 to 65535")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit code."""
    for package in (*SERVE, *ONNX):
        import_extra(package, "serve", "servers")
    from thumbnet.serving.limits import Limits
    from thumbnet.serving.listen import is_local, make_server, open_socket, serve, url_of

    with open_socket(args.host, args.port) as listening:  # first: a port that is taken need not wait for an export
        limits = Limits(body_bytes=args.max_mb * 2**20, at_once=args.at_once)
        server = make_server(_classifier(args), listening, limits, access_log=not args.quiet)
        url = url_of(listening)
        print(f"serving at {url}", flush=True)
        if not is_local(listening):
            note("everybody who can reach this machine is let in, without a password")
        note(f"open it in a browser, or: curl --data-binary @photo.jpg {url}/predict\nCtrl-C ends it")
        answered = serve(server, listening)
    note(f"ended after {answered:,} {'request' if answered == 1 else 'requests'}")
    return 0


def _classifier(args: argparse.Namespace) -> OnnxClassifier:
    """Return the network of a file, or that of a run as a file."""
    from thumbnet.exporting.read import OnnxClassifier

    if args.run_name is not None and args.run_name.endswith(".onnx"):
        for flag, given in {"--checkpoint": args.checkpoint != "latest", "--weights": args.weights is not None}.items():
            if given:
                raise UsageError(f"{flag} goes with a run: {args.run_name} is of one checkpoint")
        return OnnxClassifier.open(user_path(args.run_name), args.threads)
    from thumbnet.exporting.write import MODEL_FILE, export_onnx

    predictor = predictor_of(args)
    weights = WEIGHTS_IN_WORDS[predictor.weights]
    note(f"run {printable(str(predictor.run.path))}, step {predictor.step}, {weights}; exporting it")
    with tempfile.TemporaryDirectory(prefix="thumbnet-") as folder:
        path = Path(folder) / MODEL_FILE
        export_onnx(predictor, path, args.threads)
        return OnnxClassifier.open(path, args.threads)
