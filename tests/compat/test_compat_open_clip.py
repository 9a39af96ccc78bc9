"""ClipLoss and SigLipLoss against open_clip's."""

import copy
import importlib.util
import itertools
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from compat_cases import takes_the_same
from torch import distributed

from fastssl.compat import open_clip as ours

NAMES = ("ClipLoss", "SigLipLoss")
SIZES = [1, 2, 3, 17, 64, 129]


def losses():
    """open_clip's file of losses, without the rest of it, which needs torchvision."""
    found = importlib.util.find_spec("open_clip")
    if found is None:
        pytest.skip("open_clip is not installed")
    path = Path(found.origin).with_name("loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_losses", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def theirs():
    return losses()


def features(n, width=24, dtype=torch.float32, seed=0):
    """Images, texts near them, a scale and a bias; all leaves."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, width, generator=generator, dtype=torch.float64)
    texts = images + torch.randn(n, width, generator=generator, dtype=torch.float64)
    numbers = torch.tensor(14.3), torch.tensor(-6.2)
    leaves = F.normalize(images, dim=1), F.normalize(texts, dim=1), *numbers
    return [x.to(dtype).requires_grad_() for x in leaves]


def results(loss, leaves, call=None, upstream=1.5):
    """The loss and the gradients of all leaves."""
    leaves = [x if x is None else x.detach().clone().requires_grad_() for x in leaves]
    value = (call or loss)(*leaves)
    grads = torch.autograd.grad(
        value, [x for x in leaves if x is not None], torch.tensor(upstream, dtype=value.dtype),
        allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    return value.detach(), *grads


def same(mine, other, rtol):
    for a, b in zip(mine, other, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item() + rtol / 20)


def bias_near_zero(found, n):
    """A softmax does not see the bias: its gradient is rounding there, zero here."""
    *others, grad = found
    assert grad.abs() < 1e-5
    return others


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 2e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("biased", [True, False])
def test_clip(theirs, n, dtype, rtol, biased):
    leaves = features(n, dtype=dtype)
    leaves = leaves if biased else [*leaves[:3], None]
    mine, other = (results(o.ClipLoss(), leaves) for o in (ours, theirs))
    if biased:
        mine, other = (bias_near_zero(x, n) for x in (mine, other))
    same(mine, other, rtol)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 2e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("negative_only", [False, True])
def test_siglip(theirs, n, dtype, rtol, biased, negative_only):
    leaves = features(n, dtype=dtype)
    leaves = leaves if biased else [*leaves[:3], None]
    mine, other = (o.SigLipLoss() for o in (ours, theirs))
    if not negative_only:
        same(results(mine, leaves), results(other, leaves), rtol)
    calls = [
        lambda *x, loss=loss: loss._loss(*x, negative_only=negative_only) for loss in (mine, other)
    ]
    same(results(mine, leaves, calls[0]), results(other, leaves, calls[1]), rtol)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_nearer_to_the_truth(theirs, name):
    leaves = features(64, dtype=torch.bfloat16)
    kinds = [(ours, torch.bfloat16), (theirs, torch.bfloat16), (theirs, torch.float64)]
    mine, other, truth = (
        results(getattr(o, name)(), [x.to(dtype) for x in leaves])[:4] for o, dtype in kinds
    )
    assert mine[0].dtype == other[0].dtype == torch.bfloat16
    for a, b, exact in zip(mine, other, truth, strict=True):
        rounding = 0.005 * exact.abs().max()
        assert (a - exact).abs().max() <= (b - exact).abs().max() + rounding


@pytest.mark.parametrize("name", NAMES)
def test_keywords_dictionaries_and_constant_numbers(theirs, name):
    images, texts, scale, bias = features(9)
    arguments = {
        "image_features": images, "text_features": texts, "logit_scale": scale, "logit_bias": bias,
        "output_dict": True,
    }  # fmt: skip
    mine, other = (getattr(o, name)()(**arguments) for o in (ours, theirs))
    assert list(mine) == list(other) == ["contrastive_loss"]
    torch.testing.assert_close(mine["contrastive_loss"], other["contrastive_loss"])
    loss = getattr(ours, name)()(images, texts, scale.item(), bias.item())
    torch.testing.assert_close(loss, other["contrastive_loss"])
    torch.testing.assert_close(getattr(ours, name)()(images, texts, scale[None], bias[None]), loss)


def test_one_tower_that_is_frozen(theirs):
    images, texts, scale, bias = features(9)
    for name in NAMES:
        grads = [
            torch.autograd.grad(getattr(o, name)()(images.detach(), texts, scale, bias), texts)
            for o in (ours, theirs)
        ]
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_signature_pickles_and_copies(theirs, name):
    mine, other = getattr(ours, name), getattr(theirs, name)
    takes_the_same(mine, other)
    takes_the_same(mine.forward, other.forward)
    loss = mine(cache_labels=True)
    leaves = features(5)
    for again in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert torch.equal(again(*leaves), loss(*leaves))
    assert not loss.state_dict()
    for attribute in ("rank", "world_size", "cache_labels", "prev_num_logits", "labels"):
        assert getattr(loss, attribute) == getattr(other(cache_labels=True), attribute)


def test_methods_for_subclasses(theirs):
    leaves = features(6)
    for mine, other in zip(
        ours.ClipLoss().get_logits(*leaves), theirs.ClipLoss().get_logits(*leaves), strict=True
    ):
        torch.testing.assert_close(mine, other)
    pair = ours.ClipLoss(cache_labels=True), theirs.ClipLoss(cache_labels=True)
    for n in (6, 6, 4):
        a, b = (loss.get_ground_truth(torch.device("cpu"), n) for loss in pair)
        assert torch.equal(a, b)
    mine, other = ours.SigLipLoss(), theirs.SigLipLoss()
    torch.testing.assert_close(mine.get_logits(*leaves), other.get_logits(*leaves))
    for negative_only in (False, True):
        truths = [
            x.get_ground_truth(torch.device("cpu"), torch.float64, 3, negative_only)
            for x in (mine, other)
        ]
        assert torch.equal(*truths)
        assert truths[0].dtype == torch.float64


def test_subclasses_with_logits_of_their_own(theirs):
    """They decide, and are computed as there."""

    def cooler(base):
        class Cooler(base):
            def get_logits(self, *arguments, **keywords):
                found = super().get_logits(*arguments, **keywords)
                return tuple(x / 2 for x in found) if isinstance(found, tuple) else found / 2

        return Cooler()

    leaves = features(7)
    for name in NAMES:
        mine, other = (results(cooler(getattr(o, name)), leaves) for o in (ours, theirs))
        same(mine, other, 1e-5)


def test_errors():
    images, texts, scale, bias = features(4)
    with pytest.raises(ValueError, match="use_horovod: got True"):
        ours.ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match="dist_impl: got 'star'"):
        ours.SigLipLoss(dist_impl="star")
    for name in NAMES:
        loss = getattr(ours, name)()
        with pytest.raises(ValueError, match="text_features: got shape"):
            loss(images, texts[:3], scale, bias)
        with pytest.raises(ValueError, match="logit_scale: got shape"):
            loss(images, texts, torch.ones(2), bias)
    with pytest.raises(ValueError, match="text_features: got shape"):
        ours.SigLipLoss()._loss(images, texts[:3], scale, bias, negative_only=True)


def test_compiles_without_a_break(theirs):
    leaves = features(8)
    for name in NAMES:
        compiled = torch.compile(getattr(ours, name)(), fullgraph=True, backend="aot_eager")
        same(results(compiled, leaves)[:4], results(getattr(theirs, name)(), leaves)[:4], 2e-5)


FLAGS = [
    ("ClipLoss", {"local_loss": local, "gather_with_grad": grad})
    for local, grad in itertools.product([False, True], repeat=2)
]
FLAGS += [("SigLipLoss", {"dist_impl": impl}) for impl in ("bidir", "shift", "reduce", "gather")]


def averaged_numbers(found):
    """What DistributedDataParallel makes of the numbers' gradients."""
    value, images, texts, *numbers = (x.clone() for x in found)
    for grad in numbers:
        distributed.all_reduce(grad)
    return value, images, texts, *(grad / distributed.get_world_size() for grad in numbers)


def ranks_agree(rank, world, folder):
    """On each rank: value and gradients are open_clip's, for every flag."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    theirs, leaves = losses(), features(5, seed=rank)
    leaves[2:] = features(5)[2:]
    for name, flags in FLAGS:
        mine, other = (
            results(getattr(o, name)(**flags, rank=rank, world_size=world), leaves)
            for o in (ours, theirs)
        )
        own_other = other
        if name == "SigLipLoss" or all(flags.values()):
            mine, other = (averaged_numbers(x) for x in (mine, other))
        if name == "ClipLoss":
            mine, other = (bias_near_zero(x, 5) for x in (mine, other))
        try:
            same(mine, other, 2e-5)
        except AssertionError as error:
            raise AssertionError(f"{name} {flags} on rank {rank} of {world}: {error}") from error

        class Own(getattr(ours, name)):
            def get_logits(self, *arguments):
                return super().get_logits(*arguments)

        own = results(Own(**flags, rank=rank, world_size=world), leaves)
        same(own[:4], own_other[:4], 2e-5)
    with pytest.raises(ValueError, match="rank, world_size: got 0, 7, must be"):
        ours.ClipLoss(world_size=7)(*leaves)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_several_ranks(theirs, tmp_path):
    torch.multiprocessing.spawn(ranks_agree, (3, str(tmp_path)), nprocs=3)
