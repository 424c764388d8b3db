"""What is answered, and how what cannot be answered is refused."""

import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from thumbnet.exporting.read import OnnxClassifier
from thumbnet.serving.app import encodable

SIDE = 8
CLASSES = ("red", "green", "blue")


def saved(picture: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """A picture as a file's bytes."""
    stream = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(stream, format=kind, **options)
    return stream.getvalue()


RED, GREEN = (saved(Image.new("RGB", (SIDE, SIDE), colour)) for colour in ("red", "lime"))
RED_IMAGE = Image.new("RGB", (20, 20), "red")
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def form(*parts: tuple[str, bytes], boundary: str = "xyz") -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a form: (disposition, content) of each part."""
    lines = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"
        for disposition, content in parts
    )
    return lines + f"--{boundary}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


FILE = 'name="file"; filename="red.png"'


def test_a_picture_is_answered_with_the_classes_in_order(lasting: Any) -> None:
    status, said = lasting.predict(saved(NOISE))
    assert status == 200
    logits = 10 / 255 * NOISE.reshape(-1, 3).mean(0)
    expected = dict(zip(CLASSES, np.exp(logits) / np.exp(logits).sum(), strict=True))
    order = sorted(CLASSES, key=lambda name: -expected[name])
    assert [entry["class"] for entry in said["top"]] == order
    assert {entry["class"]: entry["probability"] for entry in said["top"]} == pytest.approx(expected, abs=1e-6)
    assert (said["class"], said["probability"]) == (order[0], said["top"][0]["probability"])


@pytest.mark.parametrize(("top", "told"), [(1, 1), (2, 2), (3, 3), (99, 3)])
def test_as_many_classes_are_told_as_asked_for(lasting: Any, top: int, told: int) -> None:
    status, said = lasting.predict(GREEN, f"?top={top}")
    assert status == 200
    assert len(said["top"]) == told
    assert said["class"] == "green"


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", "text"])
def test_the_picture_counts_and_not_what_it_is_called(lasting: Any, kind: str) -> None:
    """Among them what curl calls its `--data-binary`."""
    assert lasting.predict(RED, headers={"Content-Type": kind})[1]["class"] == "red"


def test_a_form_with_one_file_is_a_picture(lasting: Any) -> None:
    body, headers = form((FILE, RED))
    status, said = lasting.predict(body, headers=headers)
    assert (status, said["class"]) == (200, "red")
    large = saved(np.random.default_rng(1).integers(0, 256, (900, 900, 3), dtype=np.uint8))
    assert len(large) > 2 * 2**20  # more than what others begin to write to the disk at
    body, headers = form(('name="anything"; filename="../../etc/passwd"', large))
    assert lasting.predict(body, headers=headers)[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "why"),
    [
        (*form((FILE, RED), (FILE, RED)), "Too many files"),
        (*form(), "it has none"),
        (*form(('name="file"', RED)), "Too many fields"),
        (*form(("form-data", RED)), '"name" must be provided'),
        (b"no form at all", {"Content-Type": "multipart/form-data; boundary=xyz"}, "a form with one file is expected"),
        (RED, {"Content-Type": "multipart/form-data"}, "Missing boundary"),
        (
            form(('name="\xe4"', RED))[0],
            {"Content-Type": "multipart/form-data; boundary=xyz; charset=undefined"},
            "decoded",
        ),
        (form((FILE, RED))[0][:60], {"Content-Type": "multipart/form-data; boundary=xyz"}, "a form with one file"),
    ],
)
def test_other_forms_are_refused(lasting: Any, body: bytes, headers: dict[str, str], why: str) -> None:
    status, said = lasting.predict(body, headers=headers)
    assert status == 400
    assert why in said["error"]
    assert lasting.predict(RED)[0] == 200


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


@pytest.mark.parametrize(
    ("picture", "label"),
    [
        (saved(RED_IMAGE, "JPEG"), "red"),
        (saved(RED_IMAGE, "WEBP"), "red"),
        (saved(RED_IMAGE, "JPEG", progressive=True), "red"),
        (saved(RED_IMAGE.convert("CMYK"), "JPEG"), "red"),
        (saved(RED_IMAGE.convert("P")), "red"),
        (saved(RED_IMAGE, save_all=True, append_images=[Image.new("RGB", (20, 20), "blue")]), "red"),
        (saved(RED_IMAGE, "WEBP", save_all=True, append_images=[Image.new("RGB", (20, 20), "blue")]), "red"),
        (saved(Image.new("RGB", (300, 20), "lime")), "green"),
        (saved(RED_IMAGE, "JPEG", exif=exif(6)), "red"),
        (saved(RED_IMAGE, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), "red"),
        (saved(Image.new("RGBA", (20, 20), (0, 0, 255, 255))), "blue"),
    ],
)
def test_pictures_of_every_make_are_converted(lasting: Any, picture: bytes, label: str) -> None:
    status, said = lasting.predict(picture)
    assert (status, said["class"]) == (200, label)
    assert said["probability"] > 0.9


@pytest.mark.parametrize("picture", [np.full((20, 20), 40_000, np.uint16), np.full((9, 9), 7, np.uint8)])
def test_grey_is_of_no_colour(lasting: Any, picture: np.ndarray) -> None:
    said = lasting.predict(saved(Image.fromarray(picture)))[1]
    assert [entry["probability"] for entry in said["top"]] == pytest.approx([1 / 3] * 3)


def png_by_hand(width: int, height: int) -> bytes:
    """The head of a PNG, and nothing that could be decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty, 0 bytes"),
        (b"/etc/passwd", "not a JPEG, PNG or WebP"),
        (b"http://localhost/secret.png", "not a JPEG, PNG or WebP"),
        (saved(RED_IMAGE, "BMP"), "not a JPEG, PNG or WebP"),
        (saved(RED_IMAGE, "GIF"), "a GIF, not a JPEG, PNG or WebP"),
        (saved(RED_IMAGE, "TIFF"), "a TIFF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"%PDF-1.7\n", "a PDF"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "SVG"),
        (saved(RED_IMAGE, "JPEG")[:-200], "damaged"),
        (saved(NOISE)[:-40], "damaged"),
        # Each scan takes few bytes, and the time of the whole picture: some hundred kilobytes could take minutes.
        (saved(RED_IMAGE, "JPEG", progressive=True)[:-2] + 101 * b"\xff\xda\0\x03\0\0\0", "more than 100 scans"),
        (png_by_hand(0, 5), "damaged"),
        (png_by_hand(9_000, 9_000), "at most 50,000,000"),
        (png_by_hand(2**31 - 1, 2**31 - 1), "pixels"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(lasting: Any, content: bytes, why: str) -> None:
    status, said = lasting.predict(content)
    assert status == 422
    assert why in said["error"]
    assert lasting.predict(RED)[0] == 200


def test_names_that_are_no_text_are_told_with_backslashes() -> None:
    facts = {"classes": ["caf\udce9", "tea"], "step": 3, "image_shape": (32, 32, 3)}
    told = encodable(facts)
    assert told == {"classes": ["caf\\udce9", "tea"], "step": 3, "image_shape": [32, 32, 3]}
    json.dumps(told, ensure_ascii=False).encode()


@pytest.mark.parametrize("query", ["?top=0", "?top=-1", "?top=many", "?top=1e3", "?top="])
def test_a_wrong_number_of_classes_is_refused_by_name(lasting: Any, query: str) -> None:
    status, said = lasting.predict(RED, query)
    assert status == 422
    assert said["error"].startswith("top: ")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/predict", 405), ("GET", "/../setup.py", 404)]
)
def test_other_addresses_are_refused_in_the_same_form(lasting: Any, method: str, path: str, status: int) -> None:
    got, said, _ = lasting.send(method, path)
    assert got == status
    assert set(said) == {"error"}


def test_which_network_answers_is_told(lasting: Any, colours: OnnxClassifier) -> None:
    assert lasting.send("GET", "/model")[:2] == (200, json.loads(json.dumps(colours.facts)))
    assert lasting.send("GET", "/health")[:2] == (200, {"status": "ok"})
    assert lasting.send("HEAD", "/health")[0] == 200


def test_the_interface_is_described(lasting: Any) -> None:
    _, described, _ = lasting.send("GET", "/openapi.json")
    predict = described["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"image/png", "image/jpeg", "image/webp", "multipart/form-data"}
    assert {"200", "400", "408", "413", "422", "503"} <= set(predict["responses"])
    assert described["components"]["schemas"]["Answer"]["properties"].keys() == {"class", "probability", "top"}


def test_the_page_takes_nothing_from_elsewhere(lasting: Any) -> None:
    for path, kind in {"/": "text/html", "/style.css": "text/css", "/script.js": "text/javascript"}.items():
        status, content, headers = lasting.send("GET", path)
        assert status == 200
        assert headers["content-type"] == f"{kind}; charset=utf-8"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert not re.findall(r"(?:https?:)?//[a-z]", content.replace("// ", ""))
    _, page, _ = lasting.send("GET", "/")
    for name in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert name == "data:," or lasting.send("GET", f"/{name}")[0] == 200
    script = lasting.send("GET", "/script.js")[1]
    for name in re.findall(r'find\("(\w+)"\)', script):
        assert f'id="{name}"' in page


def test_an_error_of_ours_tells_nothing_of_the_inside(
    serve: Callable[..., Any],
    colours: OnnxClassifier,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    right = colours.ask

    def fail_on_green(images_NHWC: np.ndarray) -> np.ndarray:
        if (images_NHWC[..., 1] == 255).any():
            raise RuntimeError("secret of the inside")
        return right(images_NHWC)

    monkeypatch.setattr(colours, "ask", fail_on_green)
    client = serve()
    assert client.predict(GREEN) == (500, {"error": "internal error"})
    assert client.predict(RED)[1]["class"] == "red"
    assert "secret of the inside" in capfd.readouterr().err  # for whoever runs the server


@pytest.mark.parametrize(("host", "status"), [("evil.example", 400), ("localhost:1", 200), ("127.0.0.1", 200)])
def test_only_this_machine_s_own_names_lead_here(lasting: Any, host: str, status: int) -> None:
    """A page of the Internet may let its name lead to 127.0.0.1, and would then be let in by the browser."""
    assert lasting.send("POST", "/predict", RED, {"Host": host})[0] == status


WHOLE = [saved(NOISE), saved(RED_IMAGE, "JPEG"), saved(RED_IMAGE, "WEBP")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(picture=st.sampled_from(WHOLE), place=st.integers(0, 10_000), change=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_picture_never_is_an_error_of_ours(
    lasting: Any, picture: bytes, place: int, change: int, cut: bool
) -> None:
    data = bytearray(picture)
    data[place % len(data)] ^= change
    if cut:
        del data[place % len(data) + 1 :]
    assert lasting.predict(bytes(data))[0] in (200, 422)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    body=st.lists(
        st.sampled_from([b"--xyz", b"--", b"\r\n", b"\n", b"Content-Disposition: form-data", b';name="a"', RED, b"\0"])
    ).map(b"".join),
    boundary=st.text("xyz'\"; =", max_size=8),
)
def test_a_damaged_form_never_is_an_error_of_ours(lasting: Any, body: bytes, boundary: str) -> None:
    status, _ = lasting.predict(body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"})
    assert status in (200, 400, 422)


def test_the_page_is_part_of_the_package() -> None:
    root = Path(__file__).parents[2]
    assert '"serving/page/*"' in (root / "pyproject.toml").read_text(encoding="utf-8")
