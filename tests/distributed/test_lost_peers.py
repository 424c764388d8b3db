import pytest
import torch.distributed as dist

from thumbnet.distributed.replicas import is_loss


@pytest.mark.parametrize(
    "error",
    [
        # As gloo words them: on the replica that waits for the lost one, on one that waits for that, at a reset.
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/buffer.cc:78] Timed out waiting 10000ms for recv"),
        RuntimeError("Application timeout caused pair closure"),
        RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:43121"),
        dist.DistNetworkError("The client socket has timed out"),
    ],
)
def test_a_failing_connection_means_a_lost_peer(error: Exception) -> None:
    assert is_loss(error)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("Connection")])
def test_other_errors_do_not(error: Exception) -> None:
    assert not is_loss(error)
