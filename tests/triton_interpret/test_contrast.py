"""The contrastive family's Triton kernels in the interpreter against float64."""

import pytest
import torch
from torch import Tensor

import fastssl
from fastssl.ops.contrast import schema, triton
from fastssl.ops.contrast.pairs import (
    LABELLED,
    PAIRED,
    POSITIVES,
    RANK,
    SIGMOID,
    SOFTMAX,
    Pairs,
    masks,
)
from fastssl.ops.nt_xent.reference import normalize_rows
from fastssl.ops.nt_xent.triton_tiles import Tile, Tiles

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, for inf and NaN

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
#: What is forgiven beside twice eager's error, relative to the largest true value or the sum of
#: what cancels; and, times the scale, half a unit in the last place of a similarity.
FLOOR = {torch.float32: 5e-7, torch.float16: 2e-4, torch.bfloat16: 2e-3}
EPSILON = 2.0**-25
KINDS = {"softmax": SOFTMAX, "sigmoid": SIGMOID, "labelled": LABELLED, "paired": PAIRED}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch, request):
    """Many tiles, programs and chunks for few rows; `real_tiles` keeps the launcher's own."""
    if "real_tiles" in request.keywords:
        return
    by_memory = Tiles(
        Tile(32, 64, 128, 1, 1), weights=Tile(64, 64, 128, 1, 1), product=Tile(32, 128, 32, 1, 1)
    )

    def small(architecture, parts, depth, *policy):
        if depth > 128:
            return by_memory
        return Tiles(Tile(64, 32, depth, 1, 1), Tile(32, 32, depth, 1, 1))

    monkeypatch.setattr(triton, "family_tiles", small)
    monkeypatch.setattr(triton, "ROW_UNIT", 64)


def _index(rows: int, columns: int, g) -> Tensor:
    """A column for most rows, -1 for some, no column twice."""
    index = torch.full((rows,), -1)
    count = max(1, min(rows, columns) * 4 // 5)
    index[torch.randperm(rows, generator=g)[:count]] = torch.randperm(columns, generator=g)[:count]
    return index


def _pairs(rows, columns, d, dtype=torch.float32, kind=SOFTMAX, spread=1.0, seed=0, **options):
    """A problem of a kind; columns None: x with itself. `use` names the options that it has."""
    g = torch.Generator().manual_seed(seed)
    use = options.pop("use", ())
    x = (torch.randn(rows, d, generator=g) * spread).to(dtype)
    y = None if columns is None else (torch.randn(columns, d, generator=g) * spread).to(dtype)
    size = columns or rows
    found = dict.fromkeys(Pairs._fields)
    found |= {
        "x": x, "y": y, "factor": 5.0, "kind": kind, "normalize_x": True, "normalize_y": True,
        "columns": columns is not None, "metrics": False,
    }  # fmt: skip
    if kind == SIGMOID:
        found["bias"] = torch.tensor(-3.0)
    if kind in (LABELLED, PAIRED) or "labels" in use:
        found["row_labels"] = torch.randint(0, 4, (rows,), generator=g) + 2**40
        if columns:
            found["column_labels"] = torch.randint(0, 5, (columns,), generator=g) + 2**40
    if "partner" in use:
        found["partner"] = _index(rows, size, g)
    if "excluded" in use and columns:
        found["excluded"] = _index(rows, size, g)
    if "windows" in use:
        for name, count in (("row_window", rows), ("column_window", columns)):
            if count:
                low = -4 * torch.rand(count, generator=g).double()
                found[name] = torch.stack([low, low + 5])
    return Pairs(**{**found, **options})


def _wide(p: Pairs) -> Pairs:
    """The same in float64."""
    values = p._asdict().items()
    return Pairs(
        **{
            k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
            for k, v in values
        }
    )


def _upstream(p: Pairs, truth) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    grads = []
    for found in truth:
        grad = torch.randint(-8, 9, found.shape, generator=g).double() / 8
        grad[3:] = 0
        if p.kind != LABELLED:
            grad[POSITIVES] = 0
        grads.append(grad.masked_fill(found.isinf(), 0))
    return grads


def _evaluate(functions, p: Pairs, upstream=None, want=(True, True)):
    forward, backward = functions
    found = forward(*p)
    upstream = _upstream(p, found) if upstream is None else upstream
    return found, backward(*p, found[0], upstream[0], found[1], upstream[1], *want), upstream


def _terms(p: Pairs, found, upstream) -> tuple[float, float]:
    """The sums of absolute values of what the gradients of scale and bias are sums of."""
    y = p.x if p.y is None else p.y
    sides = ((p.x, p.normalize_x), (y, p.normalize_x if p.y is None else p.normalize_y))
    x, y = (normalize_rows(z) if n else z for z, n in sides)
    cosines = x @ y.T
    s = cosines * (p.factor if p.scale is None else p.scale) + (p.bias or 0)
    of_rows, of_columns = masks(p, s)
    g = schema._side_gradient(p, s, *of_rows, found[0], upstream[0]).abs()
    if p.columns:
        g = g + schema._side_gradient(p, s.T, *of_columns, found[1], upstream[1]).T.abs()
    return (g * cosines.abs()).sum().item(), g.sum().item()


def _assert_close(name, ours, eager, truth, floor, largest=0.0):
    for x, e, t in ((ours.double(), eager.double(), truth.double()),):
        infinite = t.isinf()
        assert torch.equal(x[infinite], t[infinite]), name
        x, e, t = x[~infinite], e[~infinite], t[~infinite]
        if not t.numel():
            continue
        assert x.isfinite().all(), name
        error, allowed = (x - t).abs().max().item(), (e - t).abs().max().item()
        least = floor * max(t.abs().max().item(), largest)
        assert error <= 2 * allowed + least, (name, error, allowed, least)


def _check(p: Pairs, want=(True, True)):
    wide = _wide(p)
    reference = schema._forward, schema._backward
    truth, true_grads, upstream = _evaluate(reference, wide, want=want)
    eager, eager_grads, _ = _evaluate(reference, p, upstream, want)
    ours, our_grads, _ = _evaluate((triton.forward, triton.backward), p, upstream, want)
    scale = abs(p.factor if p.scale is None else p.scale.item())
    if not p.normalize_x:
        scale *= (wide.x.square().sum(1).max()).item()
    for side, x, e, t in zip(("rows", "columns"), ours, eager, truth, strict=True):
        assert x.shape == t.shape and x.dtype == torch.float64
        for row in range(len(t) if t.numel() else 0):
            if row == RANK:
                assert torch.equal(x[row], t[row])
            else:
                floor = FLOOR[torch.float32] + EPSILON * scale
                _assert_close(f"{side} {row}", x[row], e[row], t[row], floor)
    floor = FLOOR[p.x.dtype] + EPSILON * scale
    terms = 0.0, 0.0, *_terms(wide, truth, upstream)
    names = ("x", "y", "scale", "bias")
    for name, x, e, t, largest in zip(
        names, our_grads, eager_grads, true_grads, terms, strict=True
    ):
        assert x.shape == t.shape, name
        if name == "bias" and p.bias is None:
            continue
        if name in ("scale", "bias") and not want[0]:
            continue
        _assert_close(name, x, e, t, floor, largest)


@pytest.mark.parametrize(
    "columns, dtype", [*((13, dtype) for dtype in DTYPES), (None, torch.bfloat16)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind, columns, dtype):
    _check(_pairs(21, columns, 33, dtype, KINDS[kind], use=("partner", "excluded")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows, columns, d", [(1, 1, 1), (2, 5, 3), (37, 70, 16), (5, None, 128)])
def test_sizes(rows, columns, d, kind):
    _check(_pairs(rows, columns, d, kind=KINDS[kind], use=("partner",)))


@pytest.mark.parametrize("kind, dtype", list(zip(KINDS, [*DTYPES, torch.float32], strict=True)))
@pytest.mark.parametrize("columns", [9, 150, None])
def test_gradient_through_memory(columns, kind, dtype):
    _check(_pairs(70, columns, 300, dtype, KINDS[kind], use=("partner", "excluded")))


@pytest.mark.parametrize("kind, columns", [("softmax", 40), ("labelled", None), ("sigmoid", 40)])
@pytest.mark.real_tiles
def test_the_launchers_own_tiles(columns, kind):
    _check(_pairs(40, columns, 128, torch.bfloat16, KINDS[kind], use=("partner",)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [20, None])
def test_metrics(columns, kind):
    p = _pairs(17, columns, 16, kind=KINDS[kind], use=("partner", "labels"), metrics=True)
    if columns is None:
        threshold = torch.linspace(-2, 2, 17).double()
        p = p._replace(threshold=threshold, scale=torch.tensor(4.0))
    _check(p)


@pytest.mark.parametrize("columns, dtype", [(20, torch.bfloat16), (None, torch.float32)])
@pytest.mark.parametrize("kind", KINDS)
def test_labels_and_windows(kind, columns, dtype):
    use = ("partner", "excluded", "labels", "windows")
    _check(_pairs(21, columns, 16, dtype, KINDS[kind], use=use))


@pytest.mark.parametrize("scale, dtype", [(100.0, torch.float32), (-20.0, torch.float16)])
@pytest.mark.parametrize("kind", KINDS)
def test_scales(kind, scale, dtype):
    p = _pairs(20, 17, 33, dtype, KINDS[kind], use=("partner",), factor=scale)
    _check(p)
    _check(p._replace(scale=torch.tensor(scale), factor=0.0))


@pytest.mark.parametrize("want", [(True, False), (False, True)])
@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("d", [33, 150])
def test_one_side(d, columns, want):
    _check(_pairs(12, 17, d, use=("partner", "excluded"))._replace(columns=columns), want)


@pytest.mark.parametrize("kind, dtype", list(zip(KINDS, [*DTYPES, torch.float32], strict=True)))
def test_without_normalisation(kind, dtype):
    p = _pairs(20, 13, 33, dtype, KINDS[kind], 0.3, use=("partner",), normalize_x=False)
    _check(p._replace(normalize_y=False))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_a_candidate(kind):
    label = torch.zeros(6, dtype=torch.int64)
    p = _pairs(6, 1, 16, kind=KINDS[kind], metrics=True, excluded=torch.tensor([0] + [-1] * 5))
    _check(p._replace(row_labels=label, column_labels=label[:1]))
    _check(_pairs(1, None, 16, kind=KINDS[kind], metrics=True))


@pytest.mark.parametrize("kind, value", list(zip(KINDS, 2 * [torch.nan, torch.inf], strict=True)))
def test_what_is_not_a_number_stays(kind, value):
    p = _pairs(9, 7, 16, kind=KINDS[kind], use=("partner",))
    p.x[2, 3] = value
    found, grads, _ = _evaluate((triton.forward, triton.backward), p)
    assert found[0][0, 2].isnan() and found[1][0].isnan().any()
    assert grads[0].isnan().any() and grads[1].isnan().any() and grads[2].isnan()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [16, 150])
def test_opposite_rows(d, kind):
    # Where no similarity is near 0, those past the last column are above all others.
    p = _pairs(3, 2, d, kind=KINDS[kind], use=("partner",), factor=200.0)
    x = p.x[:1] + 0.1 * p.x
    labels = {"row_labels": torch.arange(3), "column_labels": torch.arange(2)}
    p = p._replace(x=x, y=-x[:2] * 0.5, **({} if p.row_labels is None else labels))
    # Of so few logits of 200 eager's error is luck: a rounding of each is 1e-5.
    reference = schema._forward, schema._backward
    truth, true_grads, upstream = _evaluate(reference, _wide(p))
    ours, grads, _ = _evaluate((triton.forward, triton.backward), p, upstream)
    for x, t in zip((*ours, *grads[:3]), (*truth, *true_grads[:3]), strict=True):
        _assert_close("opposite", x, t, t, 5e-5, 1.0)


def test_strides_and_repeats():
    base = torch.randn(21, 2, 80, generator=torch.Generator().manual_seed(0))
    x, y = base[:, 0, ::2], base[:, 1, :40].t().contiguous().t()
    p = _pairs(21, 21, 40, use=("partner",), x=x, y=y)
    first = _evaluate((triton.forward, triton.backward), p)
    again = _evaluate(
        (triton.forward, triton.backward), p._replace(x=x.contiguous(), y=y.contiguous())
    )
    for ours, theirs in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_float64_goes_to_the_reference():
    p = _wide(_pairs(5, 4, 8, use=("partner",)))
    assert torch.equal(triton.forward(*p)[0], schema._forward(*p)[0])


LOSSES = {
    "info_nce": lambda x, y, t, labels, **o: fastssl.info_nce(x, y, temperature=t, **o),
    "symmetric": lambda x, y, t, labels, **o: fastssl.info_nce(
        x, y, temperature=t, symmetric=True, labels=labels, false_negative_margin=0.3, **o
    ),
    "queue": lambda x, y, t, labels, **o: fastssl.info_nce(
        x, y, y.detach().flip(0)[:7], temperature=t, **o
    ),
    "clip": lambda x, y, t, labels, **o: fastssl.clip_loss(x, y, 1 / t, normalize=True, **o),
    "siglip": lambda x, y, t, labels, **o: fastssl.siglip_loss(
        x, y, 1 / t, t - 10, normalize=True, **o
    ),
    "sup_con out": lambda x, y, t, labels, **o: fastssl.sup_con(
        torch.cat([x, y]), labels.repeat(2), t, **o
    ),
    "sup_con in": lambda x, y, t, labels, **o: fastssl.sup_con(
        x, labels, t, form="in", references=y, reference_labels=labels, **o
    ),
    "pair_nt_xent": lambda x, y, t, labels, **o: fastssl.pair_nt_xent(
        torch.cat([x, y]), labels.repeat(2), t, **o
    ),
    "dcl": lambda x, y, t, labels, **o: fastssl.dcl(x, y, t, **o),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    dtype = torch.bfloat16 if name in ("clip", "sup_con out") else torch.float32
    g = torch.Generator().manual_seed(0)
    x = torch.randn(19, 24, generator=g)
    views = x.to(dtype), (x + 0.5 * torch.randn(19, 24, generator=g)).to(dtype)
    labels = torch.arange(19) % 6

    def run(impl, dtype):
        leaves = [z.to(dtype).requires_grad_() for z in views]
        wide = torch.promote_types(dtype, torch.float32)
        leaves.append(torch.tensor(0.2, dtype=wide, requires_grad=True))
        loss = LOSSES[name](*leaves, labels, impl=impl)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    truth, eager = run("reference", torch.float64), run("reference", dtype)
    for ours, e, t in zip(run("triton", dtype), eager, truth, strict=True):
        _assert_close(name, ours, e, t, FLOOR[dtype] + 5 * EPSILON)


@pytest.fixture
def kept_calls(monkeypatch):
    """One entry for each backward pass that scales what the forward pass kept."""
    called, backward_kept = [], triton.backward_kept
    monkeypatch.setattr(
        triton, "backward_kept", lambda *a: called.append(True) or backward_kept(*a)
    )
    return called


def _siglip(impl, dtype, normalize, rows, reduction="mean", wanted=4):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, rows, 300, generator=g).bfloat16() / (1 if normalize else 17)
    leaves = [z.to(dtype) for z in x]
    wide = torch.promote_types(dtype, torch.float32)
    leaves += [torch.tensor(v, dtype=wide) for v in (10.0, -10.0)]
    leaves[4 - wanted :] = [z.requires_grad_() for z in leaves[4 - wanted :]]
    return leaves, fastssl.siglip_loss(*leaves, normalize=normalize, reduction=reduction, impl=impl)


def _compare(evaluate):
    found = [
        evaluate(impl, dtype)
        for impl, dtype in (
            ("triton", torch.bfloat16), ("reference", torch.bfloat16), ("reference", torch.float64),
        )
    ]  # fmt: skip
    for place, (ours, eager, truth) in enumerate(zip(*found, strict=True)):
        _assert_close(str(place), ours, eager, truth, FLOOR[torch.bfloat16])


@pytest.mark.parametrize("reduction, upstream", [("mean", -3.0), ("sum", 0.3), ("none", 0.3)])
@pytest.mark.parametrize("normalize, rows", [(True, 70), (False, 70), (True, 1)])
def test_siglip_s_gradients_with_its_sums(reduction, upstream, normalize, rows, kept_calls):
    def evaluate(impl, dtype):
        leaves, loss = _siglip(impl, dtype, normalize, rows, reduction)
        weights = torch.linspace(upstream, 2 * upstream, loss.numel(), dtype=loss.dtype)
        return loss.detach(), *torch.autograd.grad(loss, leaves, weights.view(loss.shape))

    _compare(evaluate)
    assert len(kept_calls) == (reduction != "none")


def test_siglip_s_kept_gradients_may_be_scaled_again_and_differentiated(kept_calls):
    def evaluate(impl, dtype):
        leaves, loss = _siglip(impl, dtype, True, 20)
        nothing = torch.autograd.grad(loss, leaves, torch.zeros_like(loss), retain_graph=True)
        assert not any(z.any() for z in nothing)
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return torch.autograd.grad(sum(z.double().square().sum() for z in first), leaves)

    _compare(evaluate)
    assert len(kept_calls) == 3  # the second derivative asks once more, by way of POSITIVE


def test_siglip_keeps_nothing_where_a_side_is_frozen(kept_calls):
    def evaluate(impl, dtype):
        leaves, loss = _siglip(impl, dtype, True, 20, wanted=3)
        return torch.autograd.grad(loss, leaves[1:])

    _compare(evaluate)
    assert not kept_calls
