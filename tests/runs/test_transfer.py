import pytest
import torch

from thumbnet.runs.transfer import pack_checkpoint, unpack_checkpoint


@pytest.mark.parametrize("average", [True, False])
def test_what_arrives_is_what_was_sent(make_checkpoint, average):
    sent = make_checkpoint(7, average=average, info={"recipe": {"name": "ä"}, "train_s": 0.1})
    sent.model["a.weight"] = torch.arange(6.0).reshape(2, 3).t()  # another layout than the default one
    arrived = unpack_checkpoint(pack_checkpoint(sent))
    assert (arrived.step, arrived.info) == (7, sent.info)
    assert (arrived.average is None) == (not average)
    for group in ("model", "average", "state"):
        before, after = getattr(sent, group) or {}, getattr(arrived, group) or {}
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert all(before[name].dtype == after[name].dtype for name in before)
