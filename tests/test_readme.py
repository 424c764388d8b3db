"""Every command that the README names can be given as it stands there."""

import re
import shlex
from pathlib import Path

import pytest

from thumbnet.cli.main import build_parser
from thumbnet.config import load_preset, preset_names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
INLINE = re.findall(r"`(thumbnet [^`]+)`", README)
INDENTED = [line.partition(" #")[0] for line in re.findall(r"^    (thumbnet .*)$", README, re.MULTILINE)]
COMMANDS = sorted({command for command in INLINE + INDENTED if "COMMAND" not in command and "--help" not in command})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str):
    parsed, unknown = build_parser().parse_known_args(shlex.split(command)[1:])
    assert not unknown
    if getattr(parsed, "preset", None):
        assert parsed.preset in preset_names()
    if getattr(parsed, "set", None):
        load_preset(getattr(parsed, "preset", None) or "quick", dict(parsed.set))


def test_there_are_commands():
    assert len(COMMANDS) > 40


def test_commands_are_found_once_the_environment_is_active():
    assert README.index("source .venv/bin/activate") < README.index(INDENTED[0])


def test_nothing_is_installed_by_a_name_that_no_index_has():
    shown = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("src/thumbnet/**/*.py")]
    wrong = [path.name for path in shown if re.search(r"pip install \W*thumbnet", path.read_text(encoding="utf-8"))]
    assert not wrong


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path):
    text = path.read_text(encoding="utf-8")
    lines = re.findall("^#+ (.*)$", text, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in lines}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.removeprefix("#") in headings if target.startswith("#") else (path.parent / target).exists()
