import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from fastssl.train import UsageError, data, pretrain
from fastssl.train.data.kinds import Data, Split
from fastssl.train.data.text import CLS, MASK, PAD, SEP, SPECIAL
from fastssl.train.methods import find
from fastssl.train.methods.clip import CLIP, CLIPConfig
from fastssl.train.methods.mlm import MLM, MLMConfig
from fastssl.train.text_encoder import TextEncoder

PIECES, LENGTH = 30, 12
CPU = torch.device("cpu")
TINY = {
    "mlm": {"width": 8, "batch_size": 16, "epochs": 2, "limit": 32},
    "clip": {"width": 4, "text_width": 8, "text_depth": 1, "dim": 8, "batch_size": 16, "epochs": 2,
             "limit": 32},
}  # fmt: skip


def ids(count, lengths=(LENGTH,), seed=0):
    made = torch.randint(
        len(SPECIAL), PIECES, (count, LENGTH), generator=torch.Generator().manual_seed(seed)
    )
    made[:, 0] = CLS
    for row, length in zip(made, itertools.cycle(lengths), strict=False):
        row[length - 1] = SEP
        row[length:] = PAD
    return made


def texts(count=40, lengths=(LENGTH, 5)):
    labels = torch.full((count,), -1)
    splits = [Split(ids(count, lengths, seed), labels) for seed in (0, 1)]
    return Data("toy", (), *splits, tuple(map(str, range(PIECES))))


def pairs(count=12, classes=("a", "b", "c")):
    labels = torch.arange(count) % 3 if classes else torch.full((count,), -1)
    images = torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8)
    split = Split(images, labels, ids(3, (7,)).repeat(count // 3, 1))
    return Data("toy", classes, split, split, tuple(map(str, range(PIECES))))


def mlm(of=None, **keywords):
    torch.manual_seed(0)
    return MLM(MLMConfig(width=16, **keywords), of or texts())


def clip(of=None, **keywords):
    torch.manual_seed(0)
    return CLIP(CLIPConfig(width=4, text_width=8, dim=6, **keywords), of or pairs())


def test_padding_does_not_change_features():
    encoder = TextEncoder(PIECES, LENGTH, width=16, depth=2, heads=2).eval()
    assert encoder.features == 16
    short = ids(3, (7,))
    padded = encoder(short)
    torch.testing.assert_close(padded, encoder(short[:, :7]))
    expected = encoder.encode(short)[:, :7].mean(1)
    torch.testing.assert_close(padded, expected)
    assert not torch.allclose(padded, encoder(short.flip(0)))
    moved = short[:, [0, 2, 1, *range(3, LENGTH)]]
    assert not torch.allclose(padded, encoder(moved), atol=1e-4)
    with pytest.raises(UsageError, match="^width: got 18, must be a multiple of 4 and of the 2"):
        TextEncoder(PIECES, LENGTH, width=18, depth=1, heads=2)


def test_mlm_loss_is_over_hidden_tokens_alone():
    model = mlm().eval()
    of = texts().train.inputs
    inputs, labels = model.views(of, torch.arange(len(of)), 3)
    hidden = labels != -100
    assert 0.05 < hidden.float().mean() < 0.2 and not (of[hidden] < len(SPECIAL)).any()
    assert torch.equal(labels[hidden], of[hidden]) and torch.equal(inputs[~hidden], of[~hidden])
    assert 0.5 < (inputs[hidden] == MASK).float().mean() < 1
    logs = model(inputs, labels)
    tokens = model.head(model.backbone.encode(inputs))
    logits = tokens @ model.backbone.embed.weight.T + model.bias
    torch.testing.assert_close(logs["loss"], F.cross_entropy(logits[hidden], labels[hidden]))
    right = (logits.argmax(-1) == labels)[hidden].float().mean()
    torch.testing.assert_close(logs["accuracy"], right)


@pytest.mark.parametrize("places", [[], [0], [LENGTH - 1], [0, 1, 5]])
def test_mlm_of_few_hidden_tokens(places):
    model = mlm()
    inputs = ids(1)
    labels = torch.full_like(inputs, -100)
    labels[0, places] = 9
    logs = model(inputs, labels)
    logits = model.predict(inputs, torch.tensor(places, dtype=torch.int64))
    expected = F.cross_entropy(logits, labels[0, places]) if places else torch.tensor(0.0)
    torch.testing.assert_close(logs["loss"], expected)
    logs["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_mlm_masks_depend_on_seed_step_and_text_alone():
    model, of = mlm(), texts().train.inputs
    every = torch.arange(len(of))
    whole = model.views(of, every, 1)
    part = model.views(of[5:9], every[5:9], 1)
    assert all(torch.equal(a[5:9], b) for a, b in zip(whole, part, strict=True))
    assert not torch.equal(whole[1], model.views(of, every, 2)[1])
    assert not torch.equal(whole[1], mlm(seed=1).views(of, every, 1)[1])


@torch.no_grad()
def test_mlm_is_measured_by_hidden_tokens_of_test_texts():
    of = texts()
    model = mlm(of, batch_size=16).eval()
    before = model.task(of, CPU)
    assert before.question == "which token" and 0 <= before.accuracy < 0.3
    # One that knows the most frequent piece of training alone.
    frequent = of.train.inputs[of.train.inputs >= len(SPECIAL)].mode().values
    model.head[-1].weight.zero_()
    model.bias[frequent] = 9.0
    after = model.task(of, CPU)
    assert after.accuracy == after.chance == before.chance > 0


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_clip_loss_is_its_definition(loss):
    model = clip(loss=loss).eval()
    of = pairs().train
    images, captions = model.views(of.inputs[4:9], torch.arange(4, 9), 0)
    assert torch.equal(captions, of.captions[4:9])
    logs = model(images, captions)
    image = F.normalize(model.image_projection(model.backbone(images)))
    text = F.normalize(model.text_projection(model.text(captions)))
    own = torch.arange(5)
    if loss == "clip":
        logits = image @ text.T / 0.07
        expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    else:
        logits = 10 * image @ text.T - 10
        expected = -F.logsigmoid(logits * (2 * torch.eye(5) - 1)).sum(1).mean()
    torch.testing.assert_close(logs["loss"], expected)
    torch.testing.assert_close(logs["agreement"], (image * text).sum(1).mean())
    logs["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_clip_keeps_its_scale_from_running_away():
    model = clip()
    model.log_scale.data.fill_(9.0)
    model.after_step(0.5)
    assert model.log_scale.exp().item() == pytest.approx(100)
    model.log_scale.data.fill_(math.log(3.0))
    model.after_step(0.5)
    assert model.log_scale.exp().item() == pytest.approx(3)


def test_captions_are_not_part_of_what_is_saved():
    model = clip()
    assert "captions" not in model.state_dict() and "captions" in dict(model.named_buffers())


@torch.no_grad()
@pytest.mark.parametrize("classes", [("a", "b", "c"), ()])
def test_clip_is_asked_which_class_or_which_caption(classes, monkeypatch):
    of = pairs(classes=classes)
    model = clip(of).eval()
    # An image encoder that knows: image n is what caption n says.
    directions = torch.eye(6)[torch.arange(12) % 3]
    monkeypatch.setattr(model, "_embed", lambda images, device: directions[: len(images)])
    first = of.train.captions[:3]

    def embed(ids):
        return torch.eye(6)[(ids[:, None] == first).all(2).int().argmax(1)]

    monkeypatch.setattr(model, "embed_texts", embed)
    task = model.task(of, CPU)
    assert task.accuracy == 1 and task.chance == pytest.approx(1 / 3)
    assert task.question == ("which class, by its captions" if classes else "which of 12 captions")
    directions = directions.roll(1, 0)
    assert model.task(of, CPU).accuracy == 0


def train(name, out, **keywords):
    options = TINY[name] | {"online": 0, "evaluate": False, "accelerator": "cpu"} | keywords
    return pretrain(name, out=out, **options)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "a.txt"
    lines = (" ".join(f"w{n % 7}{n * i % 11}" for i in range(20)) for n in range(300))
    path.write_text("\n\n".join(lines))
    return f"text:{path}"


@pytest.mark.parametrize("name", ["mlm", "clip"])
def test_a_resumed_run_ends_as_an_unbroken_one(name, corpus, tmp_path, monkeypatch):
    options = {"data": corpus} if name == "mlm" else {}
    whole = train(name, tmp_path / "whole", **options).backbone.state_dict()
    kind = find(name)
    with monkeypatch.context() as patch:
        calls = itertools.count(1)
        after = kind.after_step

        def killed(self, progress):
            if next(calls) == 3:
                raise KeyboardInterrupt
            after(self, progress)

        patch.setattr(kind, "after_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(name, tmp_path / "broken", **options)
    run = train(name, tmp_path / "broken", resume=True, **options)
    broken = run.backbone.state_dict()
    assert whole.keys() == broken.keys() and all(torch.equal(whole[k], broken[k]) for k in whole)
    assert run.backbone.features == (8 if name == "mlm" else 16)


def test_methods_refuse_other_data(tmp_path):
    with pytest.raises(UsageError, match="^data: got 'digits', must be one of pydoc, text:PATH"):
        pretrain("mlm", data="digits", out=tmp_path / "run")
    with pytest.raises(UsageError, match="^data: got 'digits', must be one of digits-captions"):
        pretrain("clip", data="digits", out=tmp_path / "run")
    with pytest.raises(UsageError, match="^text_width: got 10, must be a multiple of 4"):
        clip_of_ten = CLIPConfig(text_width=10)
        CLIP(clip_of_ten, data.load("digits-captions", limit=4))
    with pytest.raises(UsageError, match="^random_share: got 0.3, must be at most 1 - mask_share"):
        MLMConfig(random_share=0.3)
