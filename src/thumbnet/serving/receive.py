"""The picture out of a request: its body, or the one file of a form, within the limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from thumbnet.serving.limits import Limits

_FORM = "multipart/form-data"


async def receive_picture(request: Request, limits: Limits) -> bytes:
    """Return a picture file's bytes.

    Raises:
        HTTPException: 413 too large, 408 too slow, 400 cut short or a form without exactly one file.
    """
    try:
        async with asyncio.timeout(limits.body_seconds):
            body = await _receive(request, limits.body_bytes)
    except TimeoutError as error:
        wait = f"{limits.body_seconds:g} seconds"
        raise HTTPException(408, f"the picture did not arrive within {wait}", {"connection": "close"}) from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the connection ended before the picture did") from error
    if not request.headers.get("content-type", "").lower().startswith(_FORM):
        return body
    try:
        return await _only_file(request, body)
    except (MultiPartException, UnicodeError) as error:  # a form may name a charset that its texts are not of
        why = error.message if isinstance(error, MultiPartException) else "it cannot be decoded"
        raise HTTPException(400, f"a form with one file is expected: {why}") from error


async def _receive(request: Request, most: int) -> bytes:
    """Return the body; what is too large is refused as soon as that is known."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > 15 or int(declared) > most:
        raise _too_large(most)
    body = bytearray()  # not a list of pieces: each costs more memory than the one byte that it may hold
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise _too_large(most)
    return bytes(body)


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"larger than {most / 2**20:g} MiB")


async def _only_file(request: Request, body: bytes) -> bytes:
    """Return the content of a form's file, kept in memory: nothing is written to the disk."""
    parser = MultiPartParser(request.headers, _once(body), max_files=1, max_fields=0)
    parser.spool_max_size = len(body) + 1
    form = await parser.parse()
    try:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if not files:
            raise HTTPException(400, "a form with one file is expected: it has none")
        return await files[0].read()
    finally:
        await form.close()


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
