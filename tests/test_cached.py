"""Gradient caching: the gradients of one pass, and the state that it leaves."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from fastssl import cached_step, clip_loss, nt_xent

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny networks gain nothing from threads, and on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def convolutions(dtype=torch.float32, dropout=0.0, norm=False):
    def stage(inputs, outputs):
        normalised = [nn.BatchNorm2d(outputs)] if norm else []
        return [nn.Conv2d(inputs, outputs, 3, 2), *normalised, nn.ReLU(), nn.Dropout(dropout)]

    net = nn.Sequential(*stage(3, 8), *stage(8, 16), nn.Flatten(), nn.Linear(16 * 4, 12))
    return net.to(dtype)


def images(count, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 12, 12, generator=generator, dtype=torch.float64).to(dtype)


def views(dtype=torch.float32, count=21):
    return images(count, dtype), images(count, dtype, seed=1)


def in_chunks(encoder, view, size):
    """One graph over the chunks: what a step in chunks must equal, random draws included."""
    return torch.cat([encoder(chunk) for chunk in view.split(size)])


def gradients(*modules):
    return [p.grad for module in modules for p in module.parameters()]


def assert_close(ours, theirs, tolerance):
    """Each gradient to within `tolerance` of its largest value, or of 1."""
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape
            assert (a - b).abs().max() <= tolerance * max(1, b.abs().max())


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 8, 21, 100])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_are_those_of_one_pass(dtype, chunk_size):
    encoder = convolutions(dtype)
    temperature = nn.Parameter(torch.tensor(0.4, dtype=dtype))
    whole, tau = copy.deepcopy(encoder), copy.deepcopy(temperature)
    expected = nt_xent(*(whole(view) for view in views(dtype)), tau)
    expected.backward()
    loss = cached_step(
        encoder, views(dtype), lambda *z: nt_xent(*z, temperature), chunk_size=chunk_size
    )
    assert not loss.requires_grad and abs(loss - expected) <= TOLERANCE[dtype] * expected
    assert_close(
        [*gradients(encoder), temperature.grad], [*gradients(whole), tau.grad], TOLERANCE[dtype]
    )


@pytest.mark.parametrize(
    ("dtype", "compiled"),
    [(torch.float32, False), (torch.float64, False), (torch.float32, True)],
)
def test_dropout_is_replayed(dtype, compiled):
    encoder = convolutions(dtype, dropout=0.3)
    whole = copy.deepcopy(encoder)
    torch.manual_seed(5)
    expected = nt_xent(*(in_chunks(whole, view, 8) for view in views(dtype)))
    state = torch.get_rng_state()
    expected.backward()
    torch.manual_seed(5)
    called = torch.compile(encoder, backend="aot_eager") if compiled else encoder
    loss = cached_step(called, views(dtype), nt_xent, chunk_size=8)
    assert abs(loss - expected) <= TOLERANCE[dtype] * expected
    assert_close(gradients(encoder), gradients(whole), TOLERANCE[dtype])
    assert torch.equal(torch.get_rng_state(), state)


class Dropped(nn.Module):
    """Layers that are dropped by Python's and NumPy's generators."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            if (random.random() if i % 2 else np.random.rand()) < 0.5:
                x = x + layer(x).tanh()
        return x


def test_generators_of_python_and_numpy_are_replayed():
    encoder, x = Dropped(), torch.randn(2, 20, 6)
    whole = copy.deepcopy(encoder)
    random.seed(3), np.random.seed(3)
    nt_xent(*(in_chunks(whole, view, 4) for view in x)).backward()
    state = random.getstate(), np.random.rand()
    random.seed(3), np.random.seed(3)
    cached_step(encoder, list(x), nt_xent, chunk_size=4)
    assert_close(gradients(encoder), gradients(whole), 1e-6)
    assert random.getstate() == state[0] and np.random.rand() == state[1]


def test_the_generator_is_left_where_the_loss_left_it():
    def loss(z0, z1):
        return (z0 * torch.rand_like(z0) * z1).sum()

    encoder = convolutions(dropout=0.5)
    torch.manual_seed(1)
    loss(*(in_chunks(encoder, view, 8) for view in views()))
    expected = torch.get_rng_state()
    torch.manual_seed(1)
    cached_step(encoder, views(), loss, chunk_size=8)
    assert torch.equal(torch.get_rng_state(), expected)


def under_autocast(encoder, step, **keywords):
    with torch.autocast("cpu", torch.bfloat16, **keywords):
        step(encoder)
    return gradients(encoder)


def test_autocast_is_that_of_one_pass():
    base = convolutions()
    dtypes = []

    def loss(z0, z1):
        dtypes.append(z0.dtype)
        return nt_xent(z0, z1)

    def one_graph(encoder):
        loss(*(in_chunks(encoder, view, 8) for view in views())).backward()

    def one_pass(encoder):
        loss(*(encoder(view) for view in views())).backward()

    def cached(encoder):
        with torch.no_grad():  # leaves casts without a graph in autocast's cache
            encoder(views()[0])
        cached_step(encoder, views(), loss, chunk_size=8)

    ours = under_autocast(copy.deepcopy(base), cached)
    # With its cache, autocast adds up the gradients of chunks in bfloat16.
    exact = under_autocast(copy.deepcopy(base), one_graph, cache_enabled=False)
    assert_close(ours, exact, 1e-6)
    theirs = under_autocast(copy.deepcopy(base), one_pass)
    assert set(dtypes) == {torch.bfloat16}
    truth = copy.deepcopy(base).double()
    nt_xent(*(truth(view) for view in views(torch.float64))).backward()
    for a, b, true in zip(ours, theirs, gradients(truth), strict=True):
        floor = 1e-3 * true.abs().max()
        assert (a - true).abs().max() <= 2 * (b - true).abs().max() + floor


def test_weights_that_change_inside_autocast_are_seen():
    encoder, seen = convolutions(), []

    def loss(z0, z1):
        seen.append(z0.detach().clone())
        return nt_xent(z0, z1)

    with torch.autocast("cpu", torch.bfloat16):
        cached_step(encoder, views(), loss, chunk_size=8)
        with torch.no_grad():
            encoder[-1].weight.mul_(2), encoder[-1].bias.mul_(2)
        cached_step(encoder, views(), loss, chunk_size=8)
    assert torch.equal(seen[1], 2 * seen[0])


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 12)

    def forward(self, tokens, mask):
        x = self.embed(tokens) * mask.unsqueeze(-1)
        return x.sum(1) / mask.sum(1, keepdim=True)


@pytest.mark.parametrize("as_tuple", [False, True])
def test_several_encoders(as_tuple):
    towers = [convolutions(), Text()]
    scale = nn.Parameter(torch.tensor(2.0))
    whole, whole_scale = copy.deepcopy((towers, scale))
    text = {"tokens": torch.randint(50, (21, 9)), "mask": torch.randint(1, 3, (21, 9)).float()}
    photos = images(21)
    clip_loss(whole[0](photos), whole[1](**text), whole_scale).backward()
    given = tuple(text.values()) if as_tuple else text
    loss = lambda *z: clip_loss(*z, scale)  # noqa: E731
    cached_step(nn.ModuleList(towers), [photos, given], loss, chunk_size=8)
    assert_close([*gradients(*towers), scale.grad], [*gradients(*whole), whole_scale.grad], 1e-6)


def test_views_of_different_sizes_and_a_loss_that_ignores_one():
    encoder = convolutions()
    whole = copy.deepcopy(encoder)
    sizes = [5, 17, 9]
    given = [images(n, seed=n) for n in sizes]
    seen = []

    def loss(z0, z1, z2):
        seen.append([len(z) for z in (z0, z1, z2)])
        return z0.square().mean() + z2.tanh().mean()

    loss(*(whole(view) for view in given)).backward()
    cached_step(encoder, given, loss, chunk_size=4)
    assert seen == [sizes, sizes]
    assert_close(gradients(encoder), gradients(whole), 1e-6)


def test_a_frozen_encoder_is_not_run_again():
    towers = [convolutions(), convolutions().requires_grad_(False)]
    calls = []
    for tower in towers:
        tower.register_forward_hook(lambda module, *_: calls.append(towers.index(module)))
    cached_step(towers, views(), nt_xent, chunk_size=7)
    assert calls == [0] * 3 + [1] * 3 + [0] * 3 + [1]
    assert all(g is None for g in gradients(towers[1])) and gradients(towers[0])[0] is not None


def test_gradients_of_the_views():
    encoder = convolutions()
    whole = copy.deepcopy(encoder)
    given = [view.clone().requires_grad_() for view in views()]
    expected = [view.clone().requires_grad_() for view in views()]
    # The second view comes out of a graph, which is to be gone through once.
    nt_xent(whole(expected[0]), whole(expected[1].exp())).backward()
    cached_step(encoder, (given[0], given[1].exp()), nt_xent, chunk_size=8)
    assert_close([x.grad for x in given], [x.grad for x in expected], 1e-6)
    assert_close(gradients(encoder), gradients(whole), 1e-6)


def test_steps_accumulate():
    encoder = convolutions()
    whole = copy.deepcopy(encoder)
    for seed in range(3):
        given = images(9, seed=seed), images(9, seed=seed + 10)
        nt_xent(*(whole(view) for view in given)).backward()
        cached_step(encoder, given, nt_xent, chunk_size=4)
    assert_close(gradients(encoder), gradients(whole), 1e-6)


def test_metrics_come_back_detached():
    def loss(z0, z1):
        return mse_loss(z0, z1), {"norm": z0.norm(), "all": [z1, (z0.mean(), 3)]}

    value, metrics = cached_step(convolutions(), views(), loss, chunk_size=8)
    assert not value.requires_grad and not metrics["norm"].requires_grad
    assert metrics["norm"] > 0 and metrics["all"][1][1] == 3
    assert not metrics["all"][0].requires_grad and not metrics["all"][1][0].requires_grad


def test_a_scaler_scales_once():
    encoder = convolutions()
    whole = copy.deepcopy(encoder)
    nt_xent(*(whole(view) for view in views())).backward()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    given = [view.clone().requires_grad_() for view in views()]
    inside = []

    def backward(x):
        inside.append(True)
        scaler.scale(x).backward()
        inside.pop()

    # As Fabric does it: a model's outputs refuse any other backward.
    def refuse(_):
        assert inside

    hook = lambda _, __, z: z.register_hook(refuse) and None if z.requires_grad else None  # noqa: E731
    encoder.register_forward_hook(hook)
    cached_step(encoder, given, nt_xent, chunk_size=8, backward=backward)
    assert_close([g / 1024 for g in gradients(encoder)], gradients(whole), 1e-6)
