"""A network that tells red from green from blue, and servers of it."""

import contextlib
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from thumbnet.exporting.read import OnnxClassifier
from thumbnet.serving.limits import Limits
from thumbnet.serving.listen import make_server, open_socket

SIDE = 8
CLASSES = ("red", "green", "blue")
SHARPNESS = 10.0


def build() -> bytes:
    """A network whose answer is the softmax of 10 times the mean of each channel, 0 to 1, written by hand."""
    scale = numpy_helper.from_array(np.float32(SHARPNESS / 255), "scale")
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["pictures"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["values", "axes"], ["means"], keepdims=0),
            helper.make_node("Mul", ["means", "scale"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "colours",
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])],
        [scale, axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    facts = {"format": 1, "classes": CLASSES, "image_shape": [SIDE, SIDE, 3], "step": 7}
    texts = dict.fromkeys(("thumbnet", "run", "preset", "model", "data", "weights"), "x")
    helper.set_model_props(model, {"thumbnet": json.dumps(facts | texts)})
    content: bytes = model.SerializeToString()
    return content


@pytest.fixture(scope="session")
def onnx_bytes() -> bytes:
    return build()


@pytest.fixture(scope="session")
def colours(onnx_bytes: bytes) -> OnnxClassifier:
    return OnnxClassifier(onnx_bytes, Path("colours.onnx"), threads=1)


@pytest.fixture(scope="session")
def red() -> bytes:
    """A red picture."""
    stream = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), "red").save(stream, "PNG")
    return stream.getvalue()


class Client:
    """Talks to a server as a program would."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, *, chunked: bool = False
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Return status, body (decoded if it is JSON) and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {}, encode_chunked=chunked)
            reply = connection.getresponse()
            content = reply.read()
            as_json = content and "json" in reply.headers.get("content-type", "")
            said = json.loads(content) if as_json else content.decode()
            return reply.status, said, reply.headers

    def predict(self, body: bytes, query: str = "", headers: dict[str, str] | None = None) -> tuple[int, Any]:
        status, said, _ = self.send("POST", f"/predict{query}", body, headers)
        return status, said

    def open(self) -> socket.socket:
        """Return a connection to write to by hand."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


Serve = Callable[..., Client]


@contextlib.contextmanager
def servers(colours: OnnxClassifier) -> Iterator[Serve]:
    """Start servers, which end with it."""
    running = []

    def start(classifier: OnnxClassifier = colours, **limits: Any) -> Client:
        listening = open_socket("127.0.0.1", 0)
        server = make_server(classifier, listening, Limits(**limits), access_log=False)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        return Client(listening.getsockname()[1])

    try:
        yield start
    finally:
        for server, _ in running:
            server.should_exit = True
        for _, thread in running:
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def serve(colours: OnnxClassifier) -> Iterator[Serve]:
    """Starts servers, which end with the test."""
    with servers(colours) as start:
        yield start


@pytest.fixture(scope="module")
def lasting(colours: OnnxClassifier) -> Iterator[Client]:
    """A server for all tests of a file."""
    with servers(colours) as start:
        yield start()
