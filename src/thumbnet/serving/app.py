"""The web application: a page to try the network, and the same for programs."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

import thumbnet
from thumbnet.data.decode import PictureError, UnreadPictureError, decode_picture
from thumbnet.exporting.read import OnnxClassifier
from thumbnet.serving.batching import Batcher
from thumbnet.serving.limits import DECODERS, FORMATS, RETRY_AFTER_S, BusyError, Limits, Places
from thumbnet.serving.receive import receive_picture

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/script.js": ("script.js", "text/javascript; charset=utf-8"),
}
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"
"""What a JPEG begins with, and each of its scans (ITU-T T.81, table B.1): in its compressed data neither occurs."""
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_BODY = {  # for the description of the interface: what FastAPI finds out by itself are JSON bodies
    "requestBody": {
        "required": True,
        "content": {
            **{f"image/{kind.lower()}": _PICTURE for kind in FORMATS},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
            },
        },
    }
}


class ClassProbability(BaseModel):
    """One of the likeliest classes."""

    name: str = Field(serialization_alias="class")
    probability: float


class Answer(ClassProbability):
    """What a picture shows: the likeliest class, and the likeliest ones in order."""

    top: list[ClassProbability]


class Health(BaseModel):
    """That the server answers."""

    status: str


class Refusal(BaseModel):
    """Why there is no answer."""

    error: str


def create_app(classifier: OnnxClassifier, limits: Limits | None = None, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """Return the application, to be run by any ASGI server in one process.

    Args:
        classifier: the network that answers.
        limits: what clients may ask.
        hosts: names that requests may call this server by; others are refused, so that a page of the Internet whose
            name leads to this machine (DNS rebinding) cannot use it.
    """
    limits = limits or Limits()
    batcher = Batcher(classifier.ask)
    facts: dict[str, Any] = encodable(classifier.facts)
    places = Places(limits.at_once)
    decoders = ThreadPoolExecutor(DECODERS, "decoder")

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with batcher.running():
            yield
        decoders.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="thumbnet",
        version=thumbnet.__version__,
        summary="Says what a picture shows.",
        lifespan=lifespan,
        docs_url=None,  # both pages would load their scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    _tell_errors_plainly(app)
    for path, (name, kind) in _PAGE.items():
        _add_file(app, path, resources.files("thumbnet.serving").joinpath("page", name).read_bytes(), kind)

    def decode(data: bytes) -> np.ndarray:
        if data.startswith(_JPEG) and data.count(_SCAN) > limits.scans:
            raise PictureError(f"a JPEG of more than {limits.scans} scans")
        return decode_picture(io.BytesIO(data), classifier.image_shape[0], formats=FORMATS, most_pixels=limits.pixels)

    @app.get("/health")
    async def health() -> Health:
        """Say that requests are answered."""
        return Health(status="ok")

    app.add_api_route("/health", health, methods=["HEAD"], include_in_schema=False)

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """Say which network answers: its classes, the size of its pictures, the run and step it is from."""
        return facts

    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal, "description": why}
        for status, why in {
            400: "cut short, or a form without exactly one file",
            408: "the picture did not arrive in time",
            413: "larger than is allowed",
            422: "no picture that can be read, or `top` is out of range",
            503: "busy: come again",
        }.items()
    }

    @app.post("/predict", openapi_extra=_BODY, responses=refusals)
    async def predict(request: Request, top: Annotated[int, Query(ge=1)] = 3) -> Answer:
        """Say what a picture shows: a JPEG, PNG or WebP as the body, or as the one file of a form."""
        with places.one():
            data = await receive_picture(request, limits)
            try:
                image_HWC = await asyncio.get_running_loop().run_in_executor(decoders, decode, data)
            except UnreadPictureError as error:
                raise BusyError from error
            except PictureError as error:
                raise HTTPException(422, str(error)) from error
            likeliest = classifier.likeliest(await batcher.ask(image_HWC), top)
        entries = [ClassProbability(name=encodable(name), probability=probability) for name, probability in likeliest]
        return Answer(name=entries[0].name, probability=entries[0].probability, top=entries)

    return app


def encodable(value: Any) -> Any:
    """Return what is to be told as JSON, with names of folders that are not UTF-8 written with backslashes."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {name: encodable(entry) for name, entry in value.items()}
    return [encodable(entry) for entry in value] if isinstance(value, list | tuple) else value


def _add_file(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    """Answer a path with a file of the page."""

    async def file() -> Response:
        return Response(content, media_type=kind, headers=_PAGE_HEADERS)

    app.add_api_route(path, file, methods=["GET", "HEAD"], include_in_schema=False)


def _tell_errors_plainly(app: FastAPI) -> None:
    """Answer every error with {"error": a sentence}; one that is ours stays in the server's own log."""

    def refuse(status: int, why: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": why}, status, headers)

    @app.exception_handler(AnyHTTPException)
    async def refused(_request: Request, error: AnyHTTPException) -> JSONResponse:
        return refuse(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return refuse(422, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(BusyError)
    async def busy(_request: Request, _error: BusyError) -> JSONResponse:
        return refuse(503, "busy: come again in a moment", {"retry-after": str(RETRY_AFTER_S)})

    @app.exception_handler(Exception)
    async def failed(_request: Request, _error: Exception) -> JSONResponse:
        return refuse(500, "internal error")
