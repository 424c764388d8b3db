"""Listening on an address until a signal comes, then ending what is in flight."""

from __future__ import annotations

import errno
import functools
import ipaddress
import logging
import socket
from asyncio import TimerHandle
from typing import Any

import h11
import numpy as np
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from thumbnet.errors import UsageError
from thumbnet.exporting.read import OnnxClassifier
from thumbnet.serving.app import create_app
from thumbnet.serving.limits import Limits

_BACKLOG = 128


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: a name or address of this machine.
        port: 0 for any that is free.

    Raises:
        UsageError: it cannot be had.
    """
    if not host:
        raise UsageError("--host is empty, which would let in everybody: give an address, such as 127.0.0.1")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        # Connections inherit it. asyncio would set it, but not where the socket does not name its protocol; without it
        # the body of an answer waits 40 ms for the client to confirm the head.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError, UnicodeError) as error:
        raise UsageError(_reason(error, host, port)) from error


def _reason(error: Exception, host: str, port: int) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"--port {port}: another program listens there: give another, or 0 for any that is free"
    if number == errno.EACCES:
        return f"--port {port}: only the administrator may listen there: give one from 1024 on"
    return f"--host {host}: cannot listen there: {getattr(error, 'strerror', None) or error}"


def url_of(listening: socket.socket) -> str:
    """Return where a browser on this machine finds a socket."""
    host, port = listening.getsockname()[:2]
    if is_open_to_all(listening):
        host = "127.0.0.1" if listening.family == socket.AF_INET else "::1"
    return f"http://{host if ':' not in host else f'[{host}]'}:{port}"


def is_open_to_all(listening: socket.socket) -> bool:
    """Tell whether a socket listens at every address that this machine has."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_unspecified


def is_local(listening: socket.socket) -> bool:
    """Tell whether only programs of this machine can reach a socket."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def make_server(
    classifier: OnnxClassifier, listening: socket.socket, limits: Limits, *, access_log: bool
) -> uvicorn.Server:
    """Return a server that is not running yet.

    Args:
        classifier: the network that answers; it is asked once, so that one that cannot answer is told here.
        listening: from `open_socket`.
        limits: what clients may ask.
        access_log: whether each request is a line on stderr.

    Raises:
        DataError: the network cannot be asked.
        DivergedError: its output is not finite.
    """
    classifier.ask(np.zeros((1, *classifier.image_shape), np.uint8))
    host = listening.getsockname()[0]
    # Reached from elsewhere, it has names that nobody here knows.
    names = ["localhost", "127.0.0.1", "[::1]", host] if is_local(listening) else ["*"]
    config = uvicorn.Config(
        create_app(classifier, limits, names),
        http=functools.partial(_ImpatientProtocol, patience=limits.head_seconds),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=_logging(access_log=access_log),
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=limits.drain_seconds,
    )
    return uvicorn.Server(config)


def serve(server: uvicorn.Server, listening: socket.socket) -> int:
    """Answer requests until SIGINT or SIGTERM, then end those in flight; a second Ctrl-C ends at once.

    Args:
        server: from `make_server`.
        listening: its socket; closed at the end.

    Returns:
        How many requests were answered.
    """
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn hands the signal on when everything is done
        if server.force_exit:
            raise
    return server.server_state.total_requests


class _ImpatientProtocol(H11Protocol):
    """HTTP/1.1 whose clients have limited time.

    They have it for the head of a request, for a body that nobody wants any more, and for taking what they are sent;
    uvicorn itself would wait for ever for each. The body that is wanted has its own limit, in `receive`.
    """

    def __init__(self, *arguments: Any, patience: float, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._patience = patience
        self._end: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_longer()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()  # which ends the connection once everything is taken
        self._wait()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._wait()

    def _watch(self) -> None:
        """Start the clock where the client is to send or take something, stop it where it is our turn."""
        head = self.conn.their_state is h11.IDLE
        unwanted = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if head or unwanted or self.flow.write_paused or self.transport.is_closing():
            self._wait()
        else:
            self._wait_no_longer()

    def _wait(self) -> None:
        if self._end is None:
            self._end = self.loop.call_later(self._patience, self.transport.abort)

    def _wait_no_longer(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None


def _logging(*, access_log: bool) -> dict[str, Any]:
    """Return what is logged: errors, with their traceback, and each request where that is wanted."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
        "loggers": {
            "uvicorn.error": {"level": logging.ERROR, "handlers": ["stderr"], "propagate": False},
            "uvicorn.access": {
                "level": logging.INFO,
                "handlers": ["stderr"] if access_log else [],
                "propagate": False,
            },
        },
    }
