"""Every loss of the contrastive family against its definition, in every implementation."""

import math

import pytest
import torch
from contrast_loss_cases import (
    CASES,
    LOSSES,
    MEASURED,
    assert_exact,
    compare,
    expected_of,
    inputs_of,
    leaves_of,
    numbers_of,
    results,
)

import fastssl
from benchmarks.measure import peak_memory

SIZES = [(1, 1), (1, 9), (2, 1), (3, 2), (17, 33), (37, 20)]
LABELLED = [case for case in CASES if case.labels]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case, size, impl):
    assert_exact(case, impl, *size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_types(case, dtype, impl):
    assert_exact(case, impl, 19, 24, dtype)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reductions(case, reduction, impl):
    assert_exact(case, impl, 11, 20, reduction=reduction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_metrics(case, dtype, impl):
    assert_exact(case, impl, 14, 12, dtype, return_metrics=True)
    assert_exact(case, impl, 1, 5, dtype, return_metrics=True)


@pytest.mark.parametrize("temperature", [0.01, 0.029, 10.0, -0.01, -0.2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_temperatures(case, temperature, impl):
    assert_exact(case, impl, 13, 24, temperature=temperature, spread=0.3)


@pytest.mark.parametrize("case", [c for c in LOSSES if c.measures], ids=str)
def test_metrics_of_extreme_temperatures(case, impl):
    """Logits beyond what one exponential serves; negative ones turn every order round."""
    for temperature in (0.01, -0.01):
        assert_exact(case, impl, 9, 24, temperature=temperature, return_metrics=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_raw_similarities(case, impl):
    if "false_negative_margin" not in dict(case.options):  # in units that normalize fixes
        assert_exact(case, impl, 13, 24, temperature=4.0, normalize=False)


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_raw_similarities_of_large_rows(case, impl):
    """Whole numbers times a power of two: every logit is exact, and rows that tie stay tied."""
    g = torch.Generator().manual_seed(0)
    tensors, options = inputs_of(case, 12, 9)
    whole = {name: torch.randint(-3, 4, z.shape, generator=g) for name, z in tensors.items()}
    numbers = numbers_of(case, 1.0)
    options |= {"normalize": False, "reduction": "none"}
    for scale in (2.0**4, 2.0**10, 2.0**20):
        large = {name: z * scale for name, z in whole.items()}
        expected = expected_of(case, large, numbers, options)
        ours, _ = results(case.plain, case, large, numbers, {**options, "impl": impl})
        assert all(z.isfinite().all() for z in ours.values())
        truth, most = expected[0][0]["loss"], 81 * scale**2
        torch.testing.assert_close(ours["loss"].double(), truth, rtol=2e-7, atol=2e-7 * most)
        if scale == 2.0**4:
            compare(case, impl, large, numbers, options, expected)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("temperature", [0.02])
def test_duplicates(case, temperature, impl):
    """One row throughout: all logits are equal, and each loss is the logarithm of a count."""
    tensors, options = inputs_of(case, 14, 17)
    same = {name: z.reshape(-1, 17)[:1].expand(z.shape).clone() for name, z in tensors.items()}
    same = {name: next(iter(same.values())).flatten()[:17].expand_as(z) for name, z in same.items()}
    options = {k: v for k, v in options.items() if not k.endswith("margin")}
    numbers = numbers_of(case, temperature)
    expected = expected_of(case, same, numbers, options)
    compare(case, impl, same, numbers, options, expected, alike=True)


@pytest.mark.parametrize("case", MEASURED, ids=str)
@pytest.mark.parametrize("temperature", [0.07, -0.2])
def test_ties_rank_nobody_down(case, temperature, impl):
    tensors, options = inputs_of(case, 14, 33)
    row = next(iter(tensors.values()))[:1]
    same = {name: row.expand_as(z).contiguous() for name, z in tensors.items()}
    options = {k: v for k, v in options.items() if not k.endswith("margin")}
    numbers = numbers_of(case, temperature)
    _, found = case.plain(**same, **numbers, **options, return_metrics=True, impl=impl)
    assert found["top1"] == 1 and found["top5"] == 1
    assert abs(found["alignment"]) < 1e-6


@pytest.mark.parametrize("temperature", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("case", [c for c in CASES if not c.options], ids=str)
def test_no_digit_is_lost_near_convergence(case, temperature, impl):
    """Orthonormal aligned views: the loss is log1p of a few exponentials, down to 1e-21."""
    if case.name not in ("nt_xent", "info_nce") or case.labels:
        pytest.skip("not a cross entropy of one positive")
    if (case.name, impl) == ("nt_xent", "reference"):
        pytest.skip("the textbook form cancels; that is what this is about")
    n, eye = 16, torch.eye(40)
    tensors, options = inputs_of(case, n, 40)
    tensors = dict.fromkeys(tensors, eye[:n])
    if case.negatives:
        k = (n, 7, 40) if case.negatives == "own" else (2 * n + 1, 40)
        tensors["negatives"] = eye[n : n + 1].expand(k)
    others = {"": n - 1 if case.name == "info_nce" else 2 * n - 2, "own": 7}
    miss = others.get(case.negatives, 2 * n + 1) * math.exp(-1 / temperature)
    leaves = leaves_of(case, tensors, {})
    loss = case.plain(
        **leaves, temperature=temperature, normalize=False, reduction="none", impl=impl
    )
    loss.sum().backward()
    truth = torch.tensor(miss, dtype=torch.float64).log1p()
    torch.testing.assert_close(loss.double(), truth.expand(len(loss)), rtol=1e-5, atol=0)
    pull = -miss / (1 + miss) / temperature * (1 if case.name == "info_nce" else 2)
    grad = next(iter(leaves.values())).grad
    assert grad[0, 0].item() == pytest.approx(pull, rel=1e-5, abs=0)


@pytest.mark.parametrize("scale", [10.0, 20.0, 50.0])
def test_no_digit_of_clip_and_siglip_is_lost(scale, impl):
    n = 16
    eye = torch.eye(n).requires_grad_()
    rows = fastssl.clip_loss(eye, torch.eye(n), scale, reduction="none", impl=impl)
    truth = torch.tensor((n - 1) * math.exp(-scale), dtype=torch.float64).log1p().expand(n)
    torch.testing.assert_close(rows.double(), truth, rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(rows.sum(), eye)
    miss = (n - 1) * math.exp(-scale)
    assert grad[0, 0].item() == pytest.approx(-scale * miss / (1 + miss), rel=1e-5, abs=0)
    rows = fastssl.siglip_loss(eye, torch.eye(n), scale, -scale / 2, reduction="none", impl=impl)
    truth = torch.tensor(math.exp(-scale / 2), dtype=torch.float64).log1p().expand(n) * n
    torch.testing.assert_close(rows.double(), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "siglip_loss"], ids=str)
def test_one_pair_has_no_negatives(case, impl):
    if case.negatives or case.references:
        pytest.skip("has negatives")
    tensors, options = inputs_of(case, 1, 19)
    leaves = leaves_of(case, tensors, numbers_of(case, 0.1))
    loss = case.plain(**leaves, **options, impl=impl)
    loss.backward()
    grads = [z.grad for z in leaves.values() if z.grad is not None]
    assert loss.item() == (-math.inf if case.name.startswith("dcl") else 0)
    assert all(g.isfinite().all() for g in grads)
    if loss.item() == 0:
        assert not any(g.count_nonzero() for g in grads)


@pytest.mark.parametrize("case", LABELLED, ids=str)
@pytest.mark.parametrize("kind", ["one class", "all different", "one alone"])
def test_labels_that_leave_nothing(case, kind, impl):
    """No negatives, no positives, or a row without positives among others: in no mean, no NaN."""
    tensors, options = inputs_of(case, 9, 12)
    labels = {"one class": torch.full((9,), 3), "all different": torch.arange(9)}
    options["labels"] = labels.get(kind, torch.tensor([5, 5, 5, 5, 8, 2, 2, 2, 2]))
    if case.references:
        options["reference_labels"] = torch.full((12,), 3 if kind == "one class" else 50)
        if kind == "one alone":
            options["reference_labels"][:7] = 5
    numbers = numbers_of(case, 0.05)
    for reduction in ("mean", "none") if kind == "one alone" else ("none",):
        options["reduction"] = reduction
        expected = expected_of(case, tensors, numbers, options)
        compare(case, impl, tensors, numbers, options, expected)
    found = results(case.plain, case, tensors, numbers, {**options, "impl": impl})[0]
    nothing = {"one class": ["pair_nt_xent"], "all different": ["pair_nt_xent", "sup_con"]}
    if case.name in nothing.get(kind, []):
        assert not any(z.count_nonzero() for z in found.values())
    if kind == "one alone" and case.name == "sup_con":
        assert found["loss"][4] == 0
        if case.measures:
            options["return_metrics"] = True
            expected = expected_of(case, tensors, numbers, options)
            compare(case, impl, tensors, numbers, options, expected)


@pytest.mark.parametrize("case", LABELLED, ids=str)
def test_labels_of_any_size_and_type(case, impl):
    tensors, options = inputs_of(case, 12, 7)
    numbers = {k: v.item() for k, v in numbers_of(case, 0.3).items()}

    def loss(change):
        changed = {k: change(v) if "labels" in k else v for k, v in options.items()}
        return case.plain(**tensors, **numbers, **changed, impl=impl)

    usual = loss(lambda z: z)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        assert torch.equal(loss(lambda z, dtype=dtype: z.to(dtype)), usual)
    least = torch.iinfo(torch.int64).min
    for change in (
        lambda z: -1 - z,
        lambda z: z * 2**32,  # equal in their lower halves
        lambda z: z * 2**61 - 2**62,
        lambda z: torch.where(z == 0, least, torch.where(z == 1, -least - 1, z)),
        lambda z: torch.stack([z, z * 0 + 9], 1)[:, 0],
        lambda z: z + 2**24,  # beyond what float32 tells apart
        lambda z: z + 2**53,
    ):
        torch.testing.assert_close(loss(change), usual, rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("temperature", [0.02])
def test_zero_rows(case, temperature, impl):
    tensors, options = inputs_of(case, 10, 8)
    for k, z in enumerate(tensors.values()):
        z[3 + k] = 0
        z[5 + k] *= 1e-14  # shorter than 1e-12, too
    options = {k: v for k, v in options.items() if not k.endswith("margin")}
    numbers = numbers_of(case, temperature)
    (truth, _), _ = expected_of(case, tensors, numbers, options)
    ours, _ = results(case.plain, case, tensors, numbers, {**options, "impl": impl})
    for name, true in truth.items():
        assert ours[name].isfinite().all(), name
        mine, true = ours[name].double(), true  # noqa: PLW2901
        if name in tensors:  # gradients of rows that are zero are 1e12 times larger
            per_row = true.reshape(-1, 8).norm(dim=1).clamp(min=1e-3 / temperature)
            mine, true = (z.reshape(-1, 8) / per_row[:, None] for z in (mine, true))
        torch.testing.assert_close(mine, true, rtol=2e-4, atol=2e-4)
    for dtype in (torch.bfloat16, torch.float16):
        half = {name: z.to(dtype) for name, z in tensors.items()}
        ours, _ = results(case.plain, case, half, numbers, {**options, "impl": impl})
        assert all(z.isfinite().all() for z in ours.values())


@pytest.mark.parametrize(("bad", "temperature"), [(math.nan, 0.01), (math.inf, 0.5)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nan_and_infinity_show(case, temperature, bad, impl):
    """In whichever input: the mean and the gradients of that input's row are not numbers."""
    for place in range(len(inputs_of(case, 6, 5)[0])):
        tensors, options = inputs_of(case, 6, 5)
        name, z = list(tensors.items())[place]
        z[2].view(-1)[1] = bad
        leaves = leaves_of(case, tensors, numbers_of(case, temperature))
        loss = case.plain(**leaves, **options, impl=impl)
        loss.backward()
        assert loss.isnan(), name
        if leaves[name].requires_grad:
            assert leaves[name].grad[2].isnan().any(), name
    numbers = {k: v.item() for k, v in numbers_of(case, temperature).items()}
    if "logit_scale" in numbers:
        tensors, options = inputs_of(case, 6, 5)
        for number in numbers:
            changed = numbers | {number: math.nan}
            assert case.plain(**tensors, **changed, **options, impl=impl).isnan(), number


@pytest.mark.parametrize("case", CASES, ids=str)
def test_strides(case, impl):
    tensors, options = inputs_of(case, 12, 10)
    numbers = numbers_of(case, 0.2)
    usual, _ = results(case.plain, case, tensors, numbers, {**options, "impl": impl})
    every_second = {
        n: torch.stack([z, z * math.nan], -1).flatten(-2)[..., ::2] for n, z in tensors.items()
    }
    turned = {n: z.transpose(-1, -2).contiguous().transpose(-1, -2) for n, z in tensors.items()}
    for odd in (every_second, turned):
        assert not any(z.is_contiguous() for z in odd.values())
        found, _ = results(case.plain, case, odd, numbers, {**options, "impl": impl})
        for name in usual:
            torch.testing.assert_close(found[name], usual[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_input_requires_a_gradient_and_none_is_touched(case, impl):
    tensors, options = inputs_of(case, 12, 10)
    numbers = numbers_of(case, 0.2)
    usual, _ = results(case.plain, case, tensors, numbers, {**options, "impl": impl})
    for name in usual.keys() - {"loss"}:
        given = {n: z.clone() for n, z in (tensors | numbers).items()}
        given[name].requires_grad_()
        kept = {n: z.detach().clone() for n, z in given.items()}
        held = {n: z.clone() for n, z in options.items() if isinstance(z, torch.Tensor)}
        loss = case.plain(**given, **options, impl=impl)
        (grad,) = torch.autograd.grad(loss, given[name], retain_graph=True)
        torch.testing.assert_close(grad, usual[name], rtol=1e-6, atol=1e-7)
        assert torch.equal(grad, torch.autograd.grad(loss, given[name])[0])
        assert all(torch.equal(given[n], z) and given[n]._version <= 0 for n, z in kept.items())
        assert all(torch.equal(options[n], z) for n, z in held.items())
    assert not case.plain(**tensors, **numbers, **options, impl=impl).requires_grad


def peak(step):
    torch.manual_seed(0)
    step()
    found = peak_memory(step)
    if found is None:
        pytest.skip("this system does not tell")
    return found


@pytest.mark.no_poison
@pytest.mark.parametrize("learned", [False, True])
def test_a_queue_of_65536_has_no_matrix_of_logits(learned):
    """256 queries x 65,536 logits are 64 MiB; the queue that is read is as large."""
    query, key, queue = (torch.randn(n, 256) for n in (256, 256, 65536))
    query.requires_grad_()
    tau = torch.tensor(0.1, requires_grad=True) if learned else 0.1

    def step():
        fastssl.info_nce(query, key, queue, temperature=tau).backward()

    assert peak(step) < 8


@pytest.mark.no_poison
@pytest.mark.parametrize("case", [c for c in LOSSES if c.name != "info_nce"], ids=str)
def test_memory_grows_with_the_rows(case):
    """4,096 x 4,096 logits are 64 MiB, 8,192 x 8,192 of two views 256; a gradient is 0.5."""
    tensors, options = inputs_of(case, 4096, 32)
    leaves = leaves_of(case, tensors, numbers_of(case, 0.1))

    def step():
        case.plain(**leaves, **options).backward()

    assert peak(step) < 20


@pytest.mark.parametrize("temperature", [0.5, -0.5])
def test_margins_that_exclude_each_other_leave_no_negative(temperature, impl):
    x, y = torch.tensor([[1.0, 0], [0.9, 0.43589]]), torch.tensor([[1.0, 0], [0.6, 0.8]])
    margins = {"false_negative_margin": -0.5, "hard_negative_margin": 0.3}
    rows = fastssl.info_nce(x, y, temperature=temperature, reduction="none", impl=impl, **margins)
    assert torch.equal(rows, torch.zeros(2))
    queue = torch.tensor([[0.6, 0.8], [0.8, 0.6]])
    rows = fastssl.info_nce(
        x, y, queue, temperature=temperature, reduction="none", impl=impl, **margins
    )
    assert torch.equal(rows, torch.zeros(2))


def test_what_is_kept_for_the_backward_pass_is_bounded():
    """At most twice the rows, padding included."""
    from fastssl.ops.contrast import schema
    from fastssl.ops.contrast.pairs import SOFTMAX, Pairs

    def worth(rows, columns, depth):
        x, y = torch.empty(rows, depth), torch.empty(columns, depth)
        flags = SOFTMAX, True, True, True, False
        return schema.worth_keeping(Pairs(x, y, None, 1.0, None, *flags, *[None] * 7))

    assert worth(64, 64, 128) and worth(512, 512, 512)
    assert not worth(4096, 4096, 512) and not worth(1, 65536, 2) and not worth(5, 5, 3)
