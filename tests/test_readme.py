"""Every command that the README names can be given as it stands there."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from thumbnet.cli.main import build_parser
from thumbnet.config import load_preset, preset_names

README = (Path(__file__).parents[1] / "README.md").read_text()
INLINE = re.findall(r"`(thumbnet [^`]+)`", README)
INDENTED = [line.partition(" #")[0] for line in re.findall(r"^    (thumbnet .*)$", README, re.MULTILINE)]
HAVE_DEVICES = importlib.util.find_spec("thumbnet.cli.bench_devices") is not None
COMMANDS = sorted({command for command in INLINE + INDENTED if "COMMAND" not in command and "--help" not in command})


def alternatives(command: str) -> list[str]:
    """`thumbnet data a | b` is two commands."""
    first, *others = command.split(" | ")
    return [first, *(f"{first.rpartition(' ')[0]} {other}" for other in others)]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str):
    if "bench devices" in command and not HAVE_DEVICES:
        pytest.skip("not here")
    for text in alternatives(command):
        arguments = shlex.split(text)[1:]
        parsed, unknown = build_parser().parse_known_args(arguments)
        assert not unknown
        if getattr(parsed, "preset", None):
            assert parsed.preset in preset_names()
        if getattr(parsed, "set", None):
            load_preset(getattr(parsed, "preset", None) or "quick", dict(parsed.set))


def test_there_are_commands():
    assert len(COMMANDS) > 40
