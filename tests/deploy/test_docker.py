"""The image of deploy/Dockerfile: what it takes from the folder, and from where it takes PyTorch."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")


def test_pytorch_comes_for_processors_unless_another_index_is_named():
    assert "ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu\n" in DOCKERFILE
    installs = re.findall(r"^RUN pip install (.*)$", DOCKERFILE, re.MULTILINE)
    assert installs
    assert all('--extra-index-url "$TORCH_INDEX"' in line for line in installs)
    assert installs[0].endswith(" torch")


def test_its_instructions_are_those_that_docker_knows():
    instructions = [line.split()[0] for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    assert instructions[0] == "FROM"
    assert set(instructions) <= {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "CMD"}


def test_what_is_copied_is_there_and_what_is_large_stays_out():
    copied = [name for line in re.findall(r"^COPY (.*) \./", DOCKERFILE, re.MULTILINE) for name in line.split()]
    assert {"pyproject.toml", "constraints.txt", "src"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv", "build", "runs"} <= set(ignored)
    assert not set(copied) & set(ignored)
