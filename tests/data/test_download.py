import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from thumbnet.data.description import Archive, Limits
from thumbnet.data.download import download
from thumbnet.errors import DataError

DATA = bytes(range(256)) * 1000
LIMITS = Limits(timeout_s=0.3, attempts=3, pause_s=0.0)
Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """Answers each request by the next of `answers`, the last one for ever after."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [whole]
        self.ranges: list[str | None] = []
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.ranges.append(self.headers.get("Range"))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client may leave
                    answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.released = self.released
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def archive(self) -> Archive:
        return Archive(
            url=f"http://127.0.0.1:{self.http.server_port}/a.tar.gz", size_bytes=len(DATA), digest="sha256:not-used"
        )

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def send(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def start_of(handler: BaseHTTPRequestHandler) -> int:
    return int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


def partial(handler: BaseHTTPRequestHandler, length: int | None = None) -> None:
    """Send what was asked for, or break off after `length` bytes of it."""
    start = start_of(handler)
    headers = {"Content-Length": str(len(DATA) - start)}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
    body = DATA[start:] if length is None else DATA[start : start + length]
    send(handler, 206 if start else 200, headers, body)


def whole(handler: BaseHTTPRequestHandler) -> None:
    send(handler, 200, {"Content-Length": str(len(DATA))}, DATA)


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    partial(handler, 100_000)


def status(code: int) -> Answer:
    return lambda handler: send(handler, code, {"Content-Length": "0"}, b"")


def wrong_length(handler: BaseHTTPRequestHandler) -> None:
    send(handler, 200, {"Content-Length": "10"}, DATA[:10])


def page(handler: BaseHTTPRequestHandler) -> None:
    send(handler, 200, {"Content-Type": "text/html", "Content-Length": "14"}, b"<html>:(</html>"[:14])


def page_of_unknown_length(handler: BaseHTTPRequestHandler) -> None:
    send(handler, 200, {"Content-Type": "text/html"}, b"<html>")


def stall(after: int) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        partial(handler, after)
        handler.server.released.wait(10)

    return answer


def silent(handler: BaseHTTPRequestHandler) -> None:
    handler.server.released.wait(10)


def drip(handler: BaseHTTPRequestHandler) -> None:
    partial(handler, 10)
    for byte in range(10, 1000):
        if handler.server.released.wait(0.02):
            return
        handler.wfile.write(DATA[byte : byte + 1])


def fetch(server: Server, path: Path, **limits: float) -> tuple[int, list[str]]:
    """Download, and return the bytes told as progress and the notes."""
    progress, notes = [], []
    download(server.archive, path, replace(LIMITS, **limits), advance=progress.append, note=notes.append)
    return sum(progress), notes


def test_a_file_is_fetched_whole(server: Server, tmp_path: Path):
    path = tmp_path / "part"
    assert fetch(server, path) == (len(DATA), [])
    assert path.read_bytes() == DATA
    assert server.ranges == [None]


def test_a_transfer_cut_short_goes_on_where_it_stopped(server: Server, tmp_path: Path):
    server.answers = [cut_short, cut_short, partial]
    path = tmp_path / "part"
    done, notes = fetch(server, path)
    assert path.read_bytes() == DATA
    assert done == len(DATA)
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert notes == [f"a.tar.gz: cut short, {left:,} bytes missing; trying again" for left in (156_000, 56_000)]


def test_what_an_earlier_run_had_fetched_is_not_fetched_again(server: Server, tmp_path: Path):
    server.answers = [partial]
    path = tmp_path / "part"
    path.write_bytes(DATA[:1000])
    assert fetch(server, path) == (len(DATA), [])
    assert server.ranges == ["bytes=1000-"]
    assert path.read_bytes() == DATA


def test_a_whole_file_at_hand_asks_for_nothing(server: Server, tmp_path: Path):
    path = tmp_path / "part"
    path.write_bytes(DATA)
    assert fetch(server, path) == (len(DATA), [])
    assert server.ranges == []


def test_a_file_at_hand_that_is_too_long_is_fetched_anew(server: Server, tmp_path: Path):
    path = tmp_path / "part"
    path.write_bytes(DATA + b"x")
    fetch(server, path)
    assert server.ranges == [None]
    assert path.read_bytes() == DATA


def test_a_server_that_cannot_resume_sends_all_of_it_again(server: Server, tmp_path: Path):
    server.answers = [cut_short, whole]
    path = tmp_path / "part"
    done, _ = fetch(server, path)
    assert path.read_bytes() == DATA
    assert done == len(DATA)


def test_a_refused_range_starts_over(server: Server, tmp_path: Path):
    server.answers = [status(416), whole]
    path = tmp_path / "part"
    path.write_bytes(DATA[:1000])
    done, notes = fetch(server, path)
    assert (done, len(notes)) == (len(DATA), 1)
    assert server.ranges == ["bytes=1000-", None]
    assert path.read_bytes() == DATA


def test_a_server_that_resumes_elsewhere_is_not_believed(server: Server, tmp_path: Path):
    def elsewhere(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 206, {"Content-Range": f"bytes 5-{len(DATA) - 1}/{len(DATA)}"}, DATA[5:])

    server.answers = [elsewhere]
    path = tmp_path / "part"
    path.write_bytes(DATA[:1000])
    with pytest.raises(DataError, match="does not go on from byte 1,000"):
        fetch(server, path)
    assert path.read_bytes() == DATA[:1000]


def test_a_transfer_that_always_breaks_off_is_given_up_and_kept(server: Server, tmp_path: Path):
    server.answers = [lambda handler: partial(handler, 10)]
    path = tmp_path / "part"
    with pytest.raises(DataError, match=r"cut short, 255,970 bytes missing, 3 attempts"):
        fetch(server, path)
    assert len(server.ranges) == 3
    assert path.read_bytes() == DATA[:30]


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_refusal_is_not_repeated(server: Server, tmp_path: Path, code: int):
    server.answers = [status(code)]
    with pytest.raises(DataError, match=f"the server answers {code}"):
        fetch(server, tmp_path / "part")
    assert len(server.ranges) == 1
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize("code", [429, 500, 503])
def test_an_overloaded_server_is_asked_again(server: Server, tmp_path: Path, code: int):
    server.answers = [status(code), whole]
    fetch(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == DATA


@pytest.mark.parametrize("answer", [page, page_of_unknown_length])
def test_a_page_instead_of_the_archive_is_told_and_not_kept(server: Server, tmp_path: Path, answer: Answer):
    server.answers = [answer]
    with pytest.raises(DataError, match=r"the server sends .*text/html, expected 256,000 bytes of the archive"):
        fetch(server, tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_another_length_than_published_is_told_at_once(server: Server, tmp_path: Path):
    server.answers = [wrong_length]
    with pytest.raises(DataError, match=r"sends 10 bytes of something, expected 256,000 bytes"):
        fetch(server, tmp_path / "part")
    assert len(server.ranges) == 1


def test_a_longer_file_than_published_is_never_written(server: Server, tmp_path: Path):
    server.answers = [lambda handler: send(handler, 200, {}, DATA + DATA)]
    fetch(server, tmp_path / "part")
    assert (tmp_path / "part").stat().st_size == len(DATA)


@pytest.mark.parametrize("answer", [silent, stall(0)], ids=["before the answer", "after it"])
def test_a_silent_server_is_left_at_once(server: Server, tmp_path: Path, answer: Answer):
    server.answers = [answer]
    with pytest.raises(DataError, match=r"no (answer within|data for) 0\.3 s"):
        fetch(server, tmp_path / "part")
    assert len(server.ranges) == 1


def test_a_stall_on_the_way_is_taken_up_again(server: Server, tmp_path: Path):
    server.answers = [stall(1000), partial]
    _, notes = fetch(server, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == DATA
    assert notes == ["a.tar.gz: no data for 0.3 s, 255,000 bytes missing; trying again"]


def test_a_source_that_drips_is_left(server: Server, tmp_path: Path):
    server.answers = [drip]
    with pytest.raises(DataError, match="too slow"):
        fetch(server, tmp_path / "part", slow_after_s=0.2)
    assert len(server.ranges) == 1


def test_a_server_that_is_not_there_is_told(tmp_path: Path):
    server = Server()
    server.close()
    with pytest.raises(DataError, match=r"cannot be reached \(Connection refused\)"):
        fetch(server, tmp_path / "part")
