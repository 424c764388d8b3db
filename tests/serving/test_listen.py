"""Sockets: those that cannot be had, clients without haste, and the end."""

import contextlib
import errno
import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from thumbnet.errors import UsageError
from thumbnet.serving.listen import is_local, is_open_to_all, open_socket, url_of

HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"

Serve = Callable[..., Any]


def ended_after(connection: socket.socket) -> float:
    """Seconds until the other side ends a connection."""
    begun = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            pass
    return time.monotonic() - begun


def send_for_20_seconds(connection: socket.socket, data: bytes) -> None:
    for _ in range(2000):
        connection.sendall(data)
        time.sleep(0.01)


@pytest.mark.parametrize("sent", [b"", b"POST /pre", HEAD, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea"])
def test_who_does_not_send_a_request_is_not_waited_for(serve: Serve, red: bytes, sent: bytes) -> None:
    client = serve(head_seconds=0.3)
    with client.open() as connection:
        connection.sendall(sent)
        assert ended_after(connection) < 20  # uvicorn alone would wait for ever
    assert client.predict(red)[0] == 200


def test_who_goes_on_with_a_body_that_nobody_wants_is_not_listened_to(serve: Serve, red: bytes) -> None:
    client = serve(head_seconds=0.3, body_bytes=1000)
    with client.open() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_for_20_seconds(connection, b"10\r\n0123456789abcdef\r\n")
    assert client.predict(red)[0] == 200


def test_who_asks_and_never_takes_the_answers_is_not_waited_for(serve: Serve, red: bytes) -> None:
    client = serve(head_seconds=0.3)
    many = 10_000 * b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with client.open() as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_for_20_seconds(connection, many)
    assert client.predict(red)[0] == 200


def test_a_connection_is_kept_between_requests(serve: Serve, red: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", serve(head_seconds=1.0).port, timeout=30)
    with contextlib.closing(connection):
        connection.connect()
        opened = connection.sock
        for _ in range(5):
            connection.request("POST", "/predict", red)
            assert connection.getresponse().read().startswith(b'{"class":"red"')
            assert connection.sock is opened
            time.sleep(0.3)


def test_more_connections_than_may_be_are_refused(serve: Serve, red: bytes) -> None:
    client = serve(connections=3)
    with contextlib.ExitStack() as open_ones:
        for _ in range(3):
            open_ones.enter_context(client.open())
        while client.send("GET", "/health")[0] != 503:
            time.sleep(0.01)
    while (status := client.predict(red)[0]) == 503:
        time.sleep(0.01)
    assert status == 200


def test_a_port_that_is_taken_is_named() -> None:
    with open_socket("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert url_of(listening) == f"http://127.0.0.1:{port}"
        with pytest.raises(UsageError, match=f"--port {port}: another program listens there"):
            open_socket("127.0.0.1", port)


def test_an_answer_does_not_wait_for_its_head_to_be_confirmed() -> None:
    with open_socket("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()[:2]):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_of_another_machine_is_refused() -> None:
    for host in ("192.0.2.1", "no such name", "x" * 300, "::ffff:192.0.2.1"):
        with pytest.raises(UsageError, match=r"--host .*: cannot listen there"):
            open_socket(host, 0)


def test_an_empty_address_lets_nobody_in() -> None:
    """It would stand for all addresses: what a variable of the shell that is not set makes of `--host`."""
    with pytest.raises(UsageError, match="--host is empty"):
        open_socket("", 0)


def test_a_port_of_the_administrator_s_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(UsageError, match="--port 80: only the administrator"):
        open_socket("127.0.0.1", 80)


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("localhost", "127.0.0.1")])
def test_the_address_told_is_one_to_open(host: str, shown: str) -> None:
    if host == "::1" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    with open_socket(host, 0) as listening:
        assert is_open_to_all(listening) == (host == "0.0.0.0")
        assert is_local(listening) == (host != "0.0.0.0")
        assert url_of(listening) == f"http://{shown}:{listening.getsockname()[1]}"


@pytest.fixture
def command(tmp_path: Path, onnx_bytes: bytes) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """The command in a process of its own, and its port."""
    path = tmp_path / "colours.onnx"
    path.write_bytes(onnx_bytes)
    words = [sys.executable, "-m", "thumbnet", "serve", str(path), "--port", "0", "--threads", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = process.stdout.readline()
            assert told.startswith("serving at http://127.0.0.1:"), process.communicate()
            yield process, int(told.rsplit(":", 1)[1])
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_what_is_in_flight(
    command: tuple["subprocess.Popen[str]", int], red: bytes, number: int
) -> None:
    process, port = command
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(HEAD + f"Content-Length: {len(red)}\r\n\r\n".encode() + red[:-1])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as other:  # so it has come
            other.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert other.recv(12) == b"HTTP/1.1 200"
        process.send_signal(number)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:  # nobody new is let in
            try:
                socket.create_connection(("127.0.0.1", port), timeout=30).close()
            except ConnectionRefusedError:
                break
            time.sleep(0.02)
        connection.sendall(red[-1:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # until it is ended
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"class":"red"' in answer
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert '"GET /health HTTP/1.1" 200' in said
    assert said.rstrip().endswith("ended after 2 requests")
