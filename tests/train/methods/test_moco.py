"""MoCo: its losses, its queue and its key encoder."""

import pytest
import torch
from distillation_cases import IMAGES, build, disturb, gradients
from torch.nn import functional as F

from fastssl.train import UsageError, pretrain


def units(rows):
    return F.normalize(rows, dim=1)


def keys_of(model, view):
    with torch.no_grad():
        return model.teacher(view)


@pytest.mark.parametrize("temperature", [0.2, 0.07])
def test_version_2_asks_for_the_key_among_the_queue(temperature):
    model, (v0, v1) = build("moco", temperature=temperature, queue=16)
    disturb(model.student())
    queue = units(model.bank())
    query, key = units(model.student()(v0)), units(keys_of(model, v1))
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1) / temperature
    expected = F.cross_entropy(logits, torch.zeros(IMAGES, dtype=torch.int64))
    logs = model(v0, v1)
    torch.testing.assert_close(logs["loss"], expected)
    agreement = (query * key).sum(1).mean()
    torch.testing.assert_close(logs["agreement"], agreement.float(), check_dtype=False)
    torch.testing.assert_close(gradients(model, logs["loss"]), gradients(model, expected))


def test_version_3_asks_both_views_among_the_batch():
    model, (v0, v1) = build("moco", version="v3", temperature=0.3)
    disturb(model.student())
    expected = 0
    for asked, answer in ((v0, v1), (v1, v0)):
        query = units(model.predictor(model.student()(asked)))
        logits = query @ units(keys_of(model, answer)).T / 0.3
        expected = expected + 2 * 0.3 * F.cross_entropy(logits, torch.arange(IMAGES))
    logs = model(v0, v1)
    torch.testing.assert_close(logs["loss"], expected)
    torch.testing.assert_close(gradients(model, logs["loss"]), gradients(model, expected))


def test_the_queue_holds_the_last_keys():
    model, (v0, v1) = build("moco", queue=2 * IMAGES + 1)
    first = model.bank().clone()
    seen = [units(keys_of(model, view)) for view in (v1, v0)]
    model(v0, v1)
    torch.testing.assert_close(model.bank(), torch.cat([first[IMAGES:], seen[0]]))
    model(v1, v0)
    torch.testing.assert_close(model.bank(), torch.cat([first[-1:], *seen]))
    assert torch.equal(model.state_dict()["bank.rows"], model.bank())


def test_a_run_in_half_precision_keeps_its_queue(tmp_path):
    options = {"limit": 64, "batch_size": 32, "width": 4, "epochs": 1, "queue": 48}
    options |= {"accelerator": "cpu", "precision": "bf16-mixed", "evaluate": False}
    pretrain("moco", out=tmp_path, **options)
    assert "top1" in (tmp_path / "metrics.jsonl").read_text()


def test_errors_name_the_argument():
    with pytest.raises(UsageError, match="^version: got 'v1', must be one of v2, v3"):
        pretrain("moco", version="v1")
    with pytest.raises(UsageError, match="^queue: got 0, must be at least 1"):
        pretrain("moco", queue=0)
    with pytest.raises(UsageError, match=r"^momentum: got 1.0, must be below 1"):
        pretrain("moco", momentum=1.0)
