"""The contrastive family under autograd, torch.func, torch.compile, autocast; opcheck."""

import pytest
import torch
from contrast_cases import CASES as PAIRS
from contrast_cases import Case as PairCase
from contrast_cases import pairs_of
from contrast_loss_cases import CASES, LOSSES, Case, inputs_of, leaves_of, numbers_of, results
from torch.autograd import gradcheck, gradgradcheck

import fastssl
from fastssl._library import _C
from fastssl.ops.contrast import schema
from fastssl.ops.contrast.pairs import COUNT, LABELLED, PAIRED, POSITIVES, SIGMOID

OPERATORS = torch.ops.fastssl
#: The weights of dclw have no gradient, by definition; values are tested against it elsewhere.
WHOLE = [case for case in CASES if case.name != "dclw"]
COMPILED = [*LOSSES, *(c for c in CASES if dict(c.options).get("symmetric"))]
COMPILED += [Case("info_nce", "queue")]


@pytest.fixture(params=["reference", *(["cpu"] if _C else [])])
def impl(request):
    """Without instruction sets: transforms do not see them."""
    return request.param


def checked(case, impl, temperature=0.4, n=4, one_class=False, **more):
    """A function of all inputs with a gradient, and those inputs in float64."""
    tensors, options = inputs_of(case, n, 3, torch.float64)
    if "labels" in options:
        options["labels"] = torch.tensor([0, 1, 0, 1, 2])[:n]
    if case.references:
        options["reference_labels"] = torch.tensor([0, 1, 1, 0, 0, 3, 2, 0])[: n + 3]
    if one_class:
        options |= {k: torch.zeros_like(v) for k, v in options.items() if "labels" in k}
    leaves = leaves_of(case, tensors, numbers_of(case, temperature))
    fixed = {k: v for k, v in leaves.items() if not v.requires_grad}
    names = [k for k in leaves if k not in fixed]

    def loss(*values):
        given = dict(zip(names, values, strict=True)) | fixed
        return case.plain(**given, **options, **more, impl=impl)

    return loss, [leaves[k] for k in names]


@pytest.mark.parametrize("negatives", [None, torch.randn(6, 3, dtype=torch.float64)])
def test_a_third_derivative_is_refused(negatives):
    """Rather than wrong in silence."""
    x, y = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = fastssl.info_nce(x, y, negatives, impl="cpu")
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice, not three times"):
        torch.autograd.grad(first.square().sum(), x, create_graph=True)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_gradcheck(case, reduction, impl):
    loss, leaves = checked(case, impl, reduction=reduction)
    assert gradcheck(loss, leaves, fast_mode=True)


@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_gradgradcheck(case, impl):
    """Margins leave some rows without negatives."""
    loss, leaves = checked(case, impl, n=3)
    assert gradgradcheck(loss, leaves, fast_mode=True)


@pytest.mark.parametrize("case", [c for c in CASES if c.labels], ids=str)
def test_second_derivatives_without_negatives(case, impl):
    loss, leaves = checked(case, impl, n=3, one_class=True)
    assert gradcheck(loss, leaves, fast_mode=True)
    assert gradgradcheck(loss, leaves, fast_mode=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_second_derivative_of_a_penalty(case, impl):
    """The penalty on a gradient, as one would write it; the reference is plain autograd."""

    def penalty(impl):
        loss, leaves = checked(case, impl, 0.2)
        value = loss(*leaves)
        grads = torch.autograd.grad(value, leaves, create_graph=True)
        total = value + sum(g.square().sum() for g in grads)
        return torch.autograd.grad(total, leaves)

    for ours, theirs in zip(penalty(impl), penalty("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_functional_gradient(case, impl):
    tensors, options = inputs_of(case, 9, 6)
    numbers = numbers_of(case, 0.2)
    usual, _ = results(case.plain, case, tensors, numbers, {**options, "impl": impl})
    leaves = {k: v.detach() for k, v in (tensors | numbers).items()}
    held = {k: leaves.pop(k) for k in list(leaves) if k not in usual}

    def loss(given):
        return case.plain(**given, **held, **options, impl=impl)

    grads, value = torch.func.grad_and_value(loss)(leaves)
    torch.testing.assert_close(value, usual["loss"], rtol=1e-6, atol=1e-7)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, usual[name], rtol=1e-6, atol=1e-7)


def compiles(case, backend, learned, sizes=(8, 12)):
    def step(tensors, numbers, options):
        tensors = {k: v * 1.5 for k, v in tensors.items()}
        return case.plain(**tensors, **numbers, **options)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for n in sizes:
        tensors, options = inputs_of(case, n, 16)
        options["return_metrics"] = case.measures
        if not case.measures:
            del options["return_metrics"]
        numbers = numbers_of(case, 0.2)
        leaves = leaves_of(case, tensors, numbers)
        given = {k: leaves[k] for k in tensors}
        numbers = {k: leaves[k] if learned else v.item() for k, v in numbers.items()}
        wanted = [z for k, z in leaves.items() if z.requires_grad and (learned or k in tensors)]
        found = []
        for function in (compiled, step):
            loss = function(given, numbers, options)
            loss, metrics = loss if case.measures else (loss, {})
            grads = torch.autograd.grad(loss, wanted, allow_unused=True)
            found.append([loss.detach(), *grads, *metrics.values()])
        for ours, eager in zip(*found, strict=True):
            if ours is None or eager is None:  # a bias without effect
                assert case.name == "clip_loss"
                continue
            torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compiles_into_one_graph(case):
    compiles(case, "aot_eager", True, (8, 12) if case.name == "dcl" else (8,))


@pytest.mark.parametrize("case", [c for c in LOSSES if c.name == "siglip_loss"], ids=str)
def test_compiles_with_numbers_that_are_fixed(case):
    compiles(case, "aot_eager", False, (8,))


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_compiles_without_gradients(case):
    """As an evaluation does."""
    tensors, options = inputs_of(case, 8, 16)
    numbers = {k: v.item() for k, v in numbers_of(case, 0.2).items()}

    def step(tensors):
        return case.plain(**tensors, **numbers, **options)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tensors), step(tensors), rtol=1e-6, atol=0)
    with torch.no_grad():
        leaves = {k: v.clone().requires_grad_() for k, v in tensors.items()}
        torch.testing.assert_close(compiled(leaves), step(tensors), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["sup_con"])
def test_inductor(name):
    compiles(next(c for c in LOSSES if c.name == name), "inductor", True, (8,))


def test_compiles_with_a_queue_that_changes():
    def step(query, key, queue):
        return fastssl.info_nce(query * 2, key, queue)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for n, k in ((8, 20), (8, 24), (6, 31)):
        query, key, queue = (torch.randn(m, 5) for m in (n, n, k))
        query.requires_grad_()
        grads = [torch.autograd.grad(f(query, key, queue), query)[0] for f in (compiled, step)]
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast_keeps_float32(case, impl):
    """As exact as without, whatever the kind of inputs; half precision gives a float32 loss."""
    tensors, options = inputs_of(case, 11, 24)
    numbers = numbers_of(case, 0.1)
    arguments = {**options, "impl": impl}
    usual, _ = results(case.plain, case, tensors, numbers, arguments)
    with torch.autocast("cpu", torch.bfloat16):
        leaves = leaves_of(case, tensors, numbers)
        inside = case.plain(**leaves, **arguments)
        half = {k: v.bfloat16() for k, v in tensors.items()}
        loss = case.plain(**half, **numbers, **arguments)
    torch.testing.assert_close(inside.detach(), usual["loss"], rtol=1e-6, atol=0)
    inside.backward()  # outside of autocast, as training loops do
    for name in usual.keys() - {"loss"}:
        torch.testing.assert_close(leaves[name].grad, usual[name], rtol=1e-6, atol=1e-6)
    assert loss.dtype == torch.float32
    wide = {k: v.float() for k, v in half.items()}
    torch.testing.assert_close(loss, case.plain(**wide, **numbers, **arguments), rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", [c for c in CASES if len(inputs_of(c, 2, 2)[0]) > 1], ids=str)
def test_autocast_promotes(case, impl):
    """A projection in bfloat16 meets float32: another's output, or a queue."""
    tensors, options = inputs_of(case, 11, 24)
    numbers = numbers_of(case, 0.1)
    for name in tensors:
        mixed = {k: v.bfloat16() if k == name else v for k, v in tensors.items()}
        leaves = leaves_of(case, mixed, numbers)
        with torch.autocast("cpu", torch.bfloat16):
            loss = case.plain(**leaves, **options, impl=impl)
        loss.backward()
        assert loss.dtype == torch.float32
        wide = {k: v.float() for k, v in mixed.items()}
        true = case.plain(**wide, **numbers, **options, impl=impl)
        torch.testing.assert_close(loss, true, rtol=1e-5, atol=1e-6)
        for k, z in mixed.items():
            assert leaves[k].grad is None or leaves[k].grad.dtype == z.dtype


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_gradients(case, impl):
    tensors, options = inputs_of(case, 11, 24)
    leaves = leaves_of(case, tensors, numbers_of(case, 0.1))
    usual = case.plain(**leaves, **options, impl=impl)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            loss = case.plain(**leaves, **options, impl=impl)
            made_inside = {k: v * 1 for k, v in leaves.items()}
            again = case.plain(**made_inside, **options, impl=impl)
        assert not loss.requires_grad
        torch.testing.assert_close(loss, usual.detach(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(again, usual.detach(), rtol=1e-6, atol=1e-7)


def test_meta_tensors_have_shapes():
    for case in LOSSES:
        tensors, options = inputs_of(case, 5, 4)
        numbers = {k: v.item() for k, v in numbers_of(case, 0.1).items()}
        moved = {k: v.to("meta") for k, v in tensors.items()}
        options = {k: v.to("meta") if "labels" in k else v for k, v in options.items()}
        rows = 10 if len(tensors) == 2 and "z0" in tensors else 5
        loss = case.plain(**moved, **numbers, **options, reduction="none")
        assert loss.shape == (rows,) and loss.device.type == "meta"


ONE_OF_EACH = [
    PairCase(symmetric=True, partner=True, labels=3, metrics=True),
    PairCase(columns=True, partner=True, window=True, metrics=True),
    PairCase(SIGMOID, partner=True),
    PairCase(LABELLED, symmetric=True, labels=3),
    PairCase(PAIRED, columns=True, labels=3, excluded=True),
]


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_opcheck(case):
    dtype = torch.bfloat16 if case.kind == SIGMOID else torch.float32
    p, _ = pairs_of(case, 6, 5, 4, dtype, 3.0, True)
    given = p._replace(scale=torch.tensor(3.0)) if case.columns else p
    torch.library.opcheck(OPERATORS.contrast_forward, tuple(given))
    rows, columns = OPERATORS.contrast_forward(*given)
    arguments = *given, rows, torch.ones_like(rows), columns, torch.ones_like(columns)
    for wanted in ((True, False),) if case.symmetric else ((True, True), (False, True)):
        torch.library.opcheck(OPERATORS.contrast_backward, (*arguments, *wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("want", [True, False])
def test_opcheck_of_a_queue(dtype, want):
    compute = torch.promote_types(dtype, torch.float32)
    z, y = torch.randn(5, 4, dtype=compute), torch.randn(9, 4).to(dtype)
    for scale in (None, torch.tensor(2.0, dtype=compute)):
        arguments = z, y, scale, 2.0, True, want
        torch.library.opcheck(OPERATORS.contrast_queue, arguments)
        for ours, plain in zip(
            OPERATORS.contrast_queue(*arguments), schema.queue(*arguments), strict=True
        ):
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_fallback_operators_agree(case):
    """What devices without a kernel of their own get."""
    p, _ = pairs_of(case, 9, 7, 4, torch.float64, 3.0, True)
    found = OPERATORS.contrast_forward(*p)
    for native, fallback in zip(found, schema._forward(*p), strict=True):
        torch.testing.assert_close(native[: COUNT + 1], fallback[: COUNT + 1])
    grads = [torch.randn_like(s) for s in found]
    for grad in grads:
        grad[POSITIVES if case.kind != LABELLED else COUNT :] = 0
    arguments = *p, found[0], grads[0], found[1], grads[1], True, not case.symmetric
    for native, fallback in zip(
        OPERATORS.contrast_backward(*arguments)[: 3 + (case.kind == SIGMOID)],
        schema._backward(*arguments),
        strict=False,
    ):
        torch.testing.assert_close(native, fallback)
