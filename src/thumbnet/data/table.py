"""Pictures listed in a CSV file: a path and a label in each row, and a split if there is a column for it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from thumbnet.data.listing import SPLIT_NAMES, Listing, make_listing, stamp_of
from thumbnet.errors import DataError, did_you_mean

PATH_COLUMNS = ("path", "file", "filename", "filepath", "image")
LABEL_COLUMNS = ("label", "class", "category")
SPLIT_COLUMNS = ("split", "set", "subset")

Rows = Iterator[tuple[int, list[str]]]
"""Number of the line a row ends in, and its fields."""


def list_table(where: Path) -> Listing:
    """Return the pictures of a CSV file.

    Its first row names the columns, in any order; others are allowed. Paths are relative to the file's folder. It is
    UTF-8, and its columns are separated by commas, semicolons or tabs.

    Raises:
        DataError: it cannot be read, a column is missing, or a row lacks a path or label; names the line.
    """
    try:
        text = where.read_bytes().decode().removeprefix("\ufeff")
        header = next((line for line in text.splitlines() if line.strip()), "")
        delimiter = max(",;\t", key=header.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return _read(where, ((reader.line_num, row) for row in reader if len(row) > 1 or "".join(row).strip()))
    except OSError as error:
        raise DataError(f"{where}: cannot read this CSV file: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start:,} is not UTF-8\nsave the CSV file as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{where}: not a CSV file: {error}\nits first row should be: path,label") from error


def _read(where: Path, rows: Rows) -> Listing:
    """Return the listing of the rows, the first of which names the columns."""
    _, header = next(rows, (0, []))
    columns = [name.strip().lower() for name in header]
    path_at = _column(where, columns, PATH_COLUMNS)
    label_at = _column(where, columns, LABEL_COLUMNS)
    split_at = next((columns.index(name) for name in SPLIT_COLUMNS if name in columns), None)
    paths, classes, splits, stamps = [], [], [], []
    for line, row in rows:
        if len(row) != len(columns):
            raise DataError(
                f"{where}, line {line}: {len(row)} fields, expected {len(columns)}: {','.join(columns)}\n"
                "add what is missing; put a field that contains a comma into double quotes"
            )
        path, label = row[path_at].strip(), row[label_at].strip()
        for name, value in (("path", path), ("label", label)):
            if not value or "\0" in value:
                raise DataError(f"{where}, line {line}: the {name} is empty\nfill it in, or delete that row")
        if split_at is not None:
            splits.append(_split(where, line, row[split_at]))
        paths.append(path)
        classes.append(label)
        stamps.append(stamp_of(where.parent / path))
    if not paths:
        raise DataError(f"{where}: no rows below the first\nadd a row with a path and a label for each picture")
    return make_listing(where, where.parent, paths, classes, splits if split_at is not None else None, stamps)


def _column(where: Path, columns: list[str], names: tuple[str, ...]) -> int:
    """Return where the first column of one of these names is."""
    for name in names:
        if name in columns:
            return columns.index(name)
    found = ",".join(columns) or "nothing"
    raise DataError(
        f"{where}, line 1: there is no column '{names[0]}', the first row has: {found}\n"
        f"name the columns there, such as path,label ({', '.join(names)} are understood for this one)"
    )


def _split(where: Path, line: int, value: str) -> int:
    """Return the index in `SPLITS` of a value in the column of splits."""
    name = value.strip().lower()
    if name not in SPLIT_NAMES:
        raise DataError(f"{where}, line {line}: unknown split '{value}'{did_you_mean(name, SPLIT_NAMES)}")
    return SPLIT_NAMES[name]
