"""Names that people have given to files and classes, as a terminal can show them."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a file's name, or what came out of a file, without line breaks, control characters or broken letters."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def shortened(text: str, longest: int) -> str:
    """Return a printable text of at most `longest` letters; a longer one ends in an ellipsis."""
    text = printable(text)
    return text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"


def width_of(text: str) -> int:
    """Return how many cells of a terminal a text takes: an East Asian letter has two."""
    from rich.cells import cell_len

    return cell_len(text)


def padded(text: str, width: int) -> str:
    """Return a text with blanks up to a width in cells; a wider one as it is."""
    return text + " " * (width - width_of(text))


def silent(_: str) -> None:
    """Tell nobody anything: a `note` of those who want to see nothing, not even a progress bar."""
