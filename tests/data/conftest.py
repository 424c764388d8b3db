"""A published data set in miniature: its record files, its official archive, its package of pictures, and an npm."""

import gzip
import hashlib
import io
import json
import shlex
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thumbnet.data.description import Archive, Limits, PicturePackage, RecordFile, RecordSet
from thumbnet.data.records import RecordFormat

SIDE, RECORDS = 4, 20
CLASSES = ("ant", "bee", "cat", "dog")
FILES = ("one.bin", "two.bin", "test.bin")
LIMITS = Limits(timeout_s=0.3, attempts=3, pause_s=0.0, npm_silence_s=5.0)


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def make_tgz(members: list[tuple[tarfile.TarInfo | str, bytes]]) -> bytes:
    """Pack members, each a name or a whole header, into a .tar.gz."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name) if isinstance(name, str) else name
            if header.isreg():
                header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), mtime=0)


def make_png(images_NHWC: np.ndarray) -> bytes:
    """Write images as the rows of one PNG."""
    stream = io.BytesIO()
    Image.fromarray(images_NHWC.reshape(len(images_NHWC), -1, 3)).save(stream, format="PNG")
    return stream.getvalue()


@dataclass
class Tiny:
    """The data set, and the bytes it is published as."""

    dataset: RecordSet
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    files: dict[str, bytes]
    archive: bytes
    package: bytes

    def put_files(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder

    def at(self, url: str, **limits: float) -> RecordSet:
        """The data set, published at this URL and under these limits."""
        return replace(
            self.dataset,
            archive=replace(self.dataset.archive, url=url),
            limits=replace(self.dataset.limits, **limits),
        )


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    rng = np.random.default_rng(1)
    images = {name: rng.integers(0, 256, (RECORDS, SIDE, SIDE, 3), dtype=np.uint8) for name in FILES}
    labels = {name: rng.permutation(np.arange(RECORDS) % len(CLASSES)) for name in FILES}
    # Independent of the package: one record is a label, then all red, all green, all blue values.
    files = {
        name: b"".join(
            bytes([label]) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
            for image, label in zip(images[name], labels[name], strict=True)
        )
        for name in FILES
    }
    archive = make_tgz([("tiny-bin/readme.html", b"<p>hello"), *((f"tiny-bin/{n}", d) for n, d in files.items())])
    package = make_tgz(
        [
            ("package/package.json", b"{}"),
            *((f"package/{name}.png", make_png(images[name])) for name in FILES),
            ("package/train.json", json.dumps([*labels["one.bin"].tolist(), *labels["two.bin"].tolist()]).encode()),
            ("package/test.json", json.dumps(labels["test.bin"].tolist()).encode()),
        ]
    )
    records = [RecordFile(name=name, records=RECORDS, digest=sha256(data)) for name, data in files.items()]
    dataset = RecordSet(
        name="tiny",
        class_names=CLASSES,
        layout=RecordFormat(image_shape=(SIDE, SIDE, 3)),
        folder="tiny-bin",
        train=(records[0], records[1]),
        test=(records[2],),
        archive=Archive(url="http://127.0.0.1:9/tiny.tar.gz", size_bytes=len(archive), digest=sha256(archive)),
        package=PicturePackage(
            spec="tiny-pictures@1.0.0",
            size_bytes=len(package),
            digest=sha256(package),
            pictures={name: f"package/{name}.png" for name in FILES},
            labels={"one.bin": "package/train.json", "two.bin": "package/train.json", "test.bin": "package/test.json"},
        ),
        limits=LIMITS,
    )
    return Tiny(dataset=dataset, images=images, labels=labels, files=files, archive=archive, package=package)


@dataclass
class FakeNpm:
    """An `npm` that serves the tiny package, or does what `script` says; it is the only program on the path."""

    folder: Path
    package: Path

    def does(self, script: str) -> None:
        npm = self.folder / "npm"
        npm.write_text(f'#!/bin/sh\nexport PATH=/usr/bin:/bin\necho "$@" >> {shlex.quote(str(self.log))}\n{script}\n')
        npm.chmod(0o755)

    def serves(self, package: bytes) -> None:
        self.package.write_bytes(package)
        self.does(f"cp {shlex.quote(str(self.package))} tiny-pictures-1.0.0.tgz")

    @property
    def log(self) -> Path:
        return self.folder / "calls"

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def npm(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> FakeNpm:
    folder = tmp_path_factory.mktemp("path")
    monkeypatch.setenv("PATH", str(folder))
    fake = FakeNpm(folder=folder, package=tmp_path_factory.mktemp("package") / "tiny.tgz")
    fake.serves(tiny.package)
    return fake


@pytest.fixture
def no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))


@pytest.fixture(scope="session")
def tgz() -> Callable[[list[tuple[tarfile.TarInfo | str, bytes]]], bytes]:
    return make_tgz


@pytest.fixture(scope="session")
def png() -> Callable[[np.ndarray], bytes]:
    return make_png
