import copy

import numpy as np
import pytest
import torch
from torch import nn

from fastssl.train import UsageError
from fastssl.train.data import Data, Split
from fastssl.train.evaluation import DRAWS, PROBES, Score, collapse, evaluate, is_clear, rows
from fastssl.train.evaluation import features as featuring
from fastssl.train.evaluation import finetune as finetuning
from fastssl.train.evaluation.features import extract
from fastssl.train.evaluation.knn import knn
from fastssl.train.evaluation.labels import Budget
from fastssl.train.evaluation.linear import batches, linear_probe

CLASSES = ("dark", "middle", "bright")


def split(count, seed, unlabelled=0):
    """Images 8 x 8 whose brightness is their class, among noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 60, (count, 1, 8, 8), generator=generator)
    images = (noise + 90 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    labels[torch.arange(unlabelled) * 2] = -1
    return Split(images, labels)


class Tiny(nn.Module):
    """Mean and three learned filters."""

    def __init__(self):
        super().__init__()
        self.features = 4
        self.filters = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.1))

    def forward(self, x):
        return torch.cat([x.mean((1, 2, 3))[:, None], self.filters(x).mean((2, 3))], 1)


class Constant(Tiny):
    def forward(self, x):
        return super().forward(x) * 0 + 1


class Lazy:
    """Images that are read when they are asked for."""

    def __init__(self, images):
        self.images, self.shape, self.dtype = images, images.shape, images.dtype
        self.most = 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, ids):
        read = self.images[ids]
        self.most = max(self.most, len(read))
        return read


@pytest.fixture(scope="module")
def data():
    return Data("toy", CLASSES, split(120, 0), split(45, 1))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Tiny()


@pytest.mark.parametrize("k", [1, 20, 200])
def test_knn_votes_as_the_loop_in_float64(k, monkeypatch):
    monkeypatch.setattr("fastssl.train.evaluation.knn.BLOCK", 60 * 7)
    generator = torch.Generator().manual_seed(k)
    train, test = (torch.randn(n, 5, generator=generator) for n in (60, 33))
    labels = torch.randint(0, 4, (60,), generator=generator)
    found = knn(train, labels, test, k)
    for x, prediction in zip(test.double().numpy(), found.tolist(), strict=True):
        similar = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in train.double().numpy()]
        votes = np.zeros(4)
        for neighbour in sorted(range(60), key=lambda i: -similar[i])[:k]:
            votes[labels[neighbour]] += np.exp(similar[neighbour] / 0.07)
        assert prediction == votes.argmax()


@pytest.mark.parametrize("text", ["1", "5", "10%", "0.5 %"])
def test_draws_are_stratified_and_the_same_for_everyone(text):
    labels = np.repeat([0, 1, 2, -1], [100, 40, 8, 30])
    np.random.seed(1)
    first = Budget.parse(text).draws(labels)
    np.random.seed(2)
    again = Budget.parse(text).draws(labels)
    wanted = {"1": [1, 1, 1], "5": [5, 5, 5], "10%": [10, 4, 1], "0.5 %": [1, 1, 1]}[text]
    assert len(first) == DRAWS and len({tuple(ids) for ids in first}) == DRAWS
    for ids, same in zip(first, again, strict=True):
        assert (ids == same).all() and len(set(ids)) == len(ids)
        assert np.bincount(labels[ids]).tolist() == wanted


def test_where_there_is_nothing_to_draw_there_is_one_draw():
    labels = np.array([0, -1, 1, 1, 0])
    for text in ("all", "100%", "2"):
        (ids,) = Budget.parse(text).draws(labels)
        assert ids.tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize("text", ["", "0", "-1", "0%", "101%", "some", "1.5", "nan%", "%"])
def test_labels_that_cannot_be_read(text):
    with pytest.raises(UsageError, match=f"^labels: got '{text}', must be 'all', a percentage"):
        Budget.parse(text)


@pytest.fixture
def short(monkeypatch):
    """Fine-tuning of a few steps."""
    monkeypatch.setattr(finetuning, "FEWEST", 24)
    monkeypatch.setattr(finetuning, "EPOCHS", 1)


def test_every_probe_separates_what_can_be_separated(data, encoder, short):
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    constant = Constant()
    state = torch.get_rng_state()
    found = rows(encoder, constant, data, [p for p in PROBES if p != "knn-200"], ["all"])
    assert [row.probe for row in found] == ["knn-20", "logistic", "linear", "finetune"]
    for row in found:
        assert row.labels == "all" and row.pretrained == Score(pytest.approx(1 / 3), 0.0)
        # Cosine similarity sees little of the brightness, and a few steps are not many.
        least = {"knn-20": 0.5, "finetune": 0.6}.get(row.probe, 0.95)
        assert row.untrained.mean > least and not is_clear(row)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    # What is drawn later does not depend on whether a run was evaluated.
    assert torch.equal(torch.get_rng_state(), state)
    frozen = encoder.requires_grad_(False)
    assert rows(frozen, constant, data, ["linear", "finetune"], ["all"]) == found[2:]
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_both_encoders_get_the_same_labels(data, encoder):
    found = rows(encoder, copy.deepcopy(encoder), data, ["logistic", "linear"], ["10%"])
    assert [(row.probe, row.labels) for row in found] == [("logistic", "10%"), ("linear", "10%")]
    assert all(row.untrained == row.pretrained and row.gain == 0 for row in found)
    known = [extract(encoder, data, "cpu")] * 2
    assert rows(None, None, data, ["logistic"], ["10%"], features=known) == found[:1]


def test_defaults_leave_out_what_the_data_has_not_enough_for(data, encoder):
    found = rows(encoder, encoder, data)
    assert [(row.probe, row.labels) for row in found] == [
        ("knn-20", "10"), ("knn-20", "all"),
        ("logistic", "1"), ("logistic", "5"), ("logistic", "10"), ("logistic", "all"),
    ]  # fmt: skip
    few = Data("few", CLASSES, split(12, 0), data.test)
    assert [row.labels for row in rows(encoder, encoder, few)] == ["1", "all"]
    with pytest.raises(
        UsageError, match="^labels: got 5 per class, class 'dark' has 4 labelled training samples"
    ):
        rows(encoder, encoder, few, labels=["1", "5"])
    found = evaluate(Run(few, encoder), ["logistic"])
    assert [row.labels for row in found] == ["1", "1%", "10%", "all"]
    with pytest.raises(UsageError, match="^labels: got 5 per class"):
        evaluate(Run(few, encoder), ["logistic"], ["5"])
    with pytest.raises(UsageError, match="^probes: knn-20 need more labels than 12"):
        rows(encoder, encoder, few, ["knn-20"])
    with pytest.raises(UsageError, match=r"^probes: got 'logistics', .*did you mean 'logistic'"):
        rows(encoder, encoder, few, ["logistics"])


def test_samples_without_a_label_are_left_out(data, encoder):
    partly = Data("partly", CLASSES, split(120, 0, unlabelled=30), split(45, 1, unlabelled=20))
    found = rows(encoder, encoder, partly, ["knn-20", "logistic", "linear"], ["all"])
    tested = int((partly.test.labels >= 0).sum())
    for row in found:
        assert row.untrained.mean * tested == pytest.approx(round(row.untrained.mean * tested))
    assert found[1].untrained.mean > 0.9
    (ids,) = Budget.parse("all").draws(partly.train.labels.numpy())
    assert len(ids) == 90
    assert set(collapse.online(encoder, partly, "cpu")) == {"knn", "rank_me", "deviation"}


class Run:
    def __init__(self, data, encoder):
        self.data, self.untrained, self.model = data, encoder, nn.Module()
        self.model.backbone = encoder


def test_one_class_is_no_question(encoder):
    one = split(30, 0)
    alone = Split(one.inputs, torch.zeros(30, dtype=torch.int64))
    for data in (
        Data("one", CLASSES, alone, alone),
        Data("none", (), one, one),
        Data("unlabelled", CLASSES, one, Split(one.inputs, torch.full((30,), -1))),
    ):
        assert rows(encoder, encoder, data) == []
        assert "knn" not in collapse.online(encoder, data, "cpu")
        with pytest.raises(UsageError, match=f"^data: {data.name} has no labels of two classes"):
            evaluate(Run(data, encoder))


def test_lazy_images_are_read_batch_by_batch(data, encoder, short, monkeypatch):
    monkeypatch.setattr(featuring.encode, "__defaults__", (None, 16))
    lazy = [Split(Lazy(s.inputs), s.labels) for s in (data.train, data.test)]
    same = Data("lazy", CLASSES, *lazy)
    encoder.train()
    encoder.filters.eval()
    found, wanted = (extract(encoder, d, "cpu", batch=16) for d in (same, data))
    assert found.train.dtype == np.float32 and found.train.shape == (120, 4)
    assert (found.train == wanted.train).all() and (found.test == wanted.test).all()
    assert encoder.training and not encoder.filters.training
    assert collapse.online(encoder, same, "cpu") == collapse.online(encoder, data, "cpu")
    assert lazy[0].inputs.most == 16
    args = encoder, encoder
    probes = ["finetune", "logistic"], ["all"]
    assert rows(*args, same, *probes) == rows(*args, data, *probes)


def test_texts_are_evaluated_as_images_are(short):
    labels = torch.arange(60) % 2
    ids = torch.randint(5, 20, (60, 6), generator=torch.Generator().manual_seed(0))
    ids = ids + 20 * labels[:, None]
    texts = Split(ids, labels)
    data = Data("texts", ("low", "high"), texts, texts)
    encoder = nn.EmbeddingBag(40, 8)
    encoder.features = 8
    found = rows(encoder, encoder, data, ["knn-20", "logistic", "finetune"], ["all"])
    assert min(row.pretrained.mean for row in found) > 0.8, found
    assert collapse.online(encoder, data, "cpu")["knn"] > 0.9


def test_features_that_are_not_finite_are_an_error(data, encoder):
    encoder.filters[0].weight.data.fill_(float("nan"))
    with pytest.raises(UsageError, match="^backbone: its features are not finite"):
        extract(encoder, data, "cpu")


def test_scores_are_mean_and_sample_deviation():
    assert Score.of([0.5]) == Score(0.5, 0.0)
    assert Score.of([0.2, 0.4]) == Score(pytest.approx(0.3), pytest.approx(0.02**0.5))


@pytest.mark.parametrize(("count", "batch", "steps"), [(10, 3, 7), (5, 5, 2), (4, 3, 1)])
def test_batches_are_passes_in_random_order(count, batch, steps):
    drawn = list(batches(count, batch, steps, 0))
    assert [len(ids) for ids in drawn] == [batch] * steps
    per_pass = count // batch
    for start in range(0, steps, per_pass):
        ids = torch.cat(drawn[start : start + per_pass])
        assert len(ids.unique()) == len(ids) and 0 <= ids.min() <= ids.max() < count


def test_linear_probe_is_fixed_by_its_seed():
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 6, generator=generator) for n in (300, 80))
    labels = (train[:, 0] > 0).long()
    first, again = (linear_probe(train, labels, test, 3) for _ in range(2))
    assert torch.equal(first, again)
    assert (first == (test[:, 0] > 0)).float().mean() > 0.95
