"""NT-Xent's Triton kernels in the interpreter, values and gradients against float64."""

import pytest
import torch

import fastssl
from fastssl.ops.nt_xent import reference, triton
from fastssl.ops.nt_xent.triton_tiles import (
    MOST_PARTS,
    Tile,
    Tiles,
    most_tiles,
    share_triangle,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, for inf and NaN

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
#: What is forgiven beside twice eager's error, relative to the largest true value.
FLOOR = {torch.float32: 5e-7, torch.float16: 2e-4, torch.bfloat16: 2e-3}
#: And, times 1 / temperature: half a unit in the last place of a similarity.
EPSILON = 2.0**-25


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch, request):
    """Many tiles, programs and chunks for few rows; `real_tiles` keeps the launcher's own."""
    if "real_tiles" in request.keywords:
        return
    by_memory = Tiles(
        Tile(32, 64, 128, 1, 1), weights=Tile(64, 64, 128, 1, 1), product=Tile(32, 128, 32, 1, 1),
        triangle=Tile(32, 64, 128, 1, 1),
    )  # fmt: skip

    def small(architecture, parts, depth):
        if depth > 128:
            return by_memory
        triangle = Tile(16, 32, depth, 1, 1)
        return Tiles(Tile(64, 32, depth, 1, 1), Tile(32, 32, depth, 1, 1), triangle=triangle)

    monkeypatch.setattr(triton, "own_tiles", small)
    monkeypatch.setattr(triton, "ROW_UNIT", 64)


def _views(n, d, dtype, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, d, generator=generator) * spread).to(dtype) for _ in range(2)]


def _evaluate(loss, views, temperature, dtype):
    """The loss and the gradients of both views and, where it is a tensor, of the temperature."""
    leaves = [z.detach().to(dtype).requires_grad_() for z in views]
    if isinstance(temperature, torch.Tensor):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        temperature = temperature.to(wide).requires_grad_()
        wanted = [*leaves, temperature]
    else:
        wanted = leaves
    value = loss(*leaves, temperature)
    upstream = torch.linspace(-0.5, 1.5, value.numel() + 1, dtype=value.dtype)[1:]
    gradients = torch.autograd.grad(value, wanted, upstream.reshape(value.shape))
    return [value.detach(), *gradients]


def _check(views, temperature, normalize=True, reduction="mean"):
    dtype = views[0].dtype

    def naive(z0, z1, t):
        return reference.nt_xent(z0, z1, t, normalize, reduction).to(z0.dtype)

    def fused(z0, z1, t):
        return fastssl.nt_xent(z0, z1, t, normalize=normalize, reduction=reduction, impl="triton")

    truth = _evaluate(naive, views, temperature, torch.float64)
    eager = _evaluate(naive, views, temperature, dtype)
    ours = _evaluate(fused, views, temperature, dtype)
    for name, x, e, t in zip(("loss", "z0", "z1", "temperature"), ours, eager, truth, strict=False):
        assert x.isfinite().all(), name
        error, allowed = (x.double() - t).abs().max(), (e.double() - t).abs().max()
        floor = (
            FLOOR[dtype] + EPSILON / abs(float(torch.as_tensor(temperature).detach()))
        ) * t.abs().max()
        assert error <= 2 * allowed + floor, (name, error.item(), allowed.item(), floor.item())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, d", [(1, 16), (2, 3), (5, 33), (32, 16), (33, 130)])
def test_sizes(n, d, dtype):
    _check(_views(n, d, dtype), 0.5)


@pytest.mark.parametrize("n, d", [(70, 128), (139, 16)])
def test_many_tiles(n, d):
    _check(_views(n, d, torch.float32), 0.5)


@pytest.mark.parametrize("processors", [1, 3, 40])
@pytest.mark.parametrize("n", [3, 55])
def test_shares_of_the_triangle(n, processors, monkeypatch):
    # One program for all tiles, several blocks of columns each, one tile each.
    monkeypatch.setattr(triton, "processors_of", lambda _: processors)
    views = _views(n, 16, torch.float32)
    rows = [fastssl.nt_xent(*views, 0.2, reduction="none", impl="triton") for _ in range(2)]
    truth = reference.nt_xent(*(z.double() for z in views), 0.2, reduction="none")
    torch.testing.assert_close(rows[0].double(), truth, rtol=2e-6, atol=0)
    assert torch.equal(*rows)


@pytest.mark.parametrize("processors", [8, 108, 132])
@pytest.mark.parametrize("tile", [Tile(64, 128, 128, 4, 3, 2), Tile(128, 64, 32, 8, 2)])
def test_triangles_are_shared_out_evenly(tile, processors):
    for rows in (2, 256, 512, 2000, 8192, 65536):
        groups, bands = share_triangle(rows, tile, processors)
        assert groups <= -(-rows // tile.columns) and bands <= -(-rows // tile.rows)
        assert groups + bands <= MOST_PARTS
        most = most_tiles(rows, tile, groups, bands, start=0)
        tiles = sum(
            -(-min(j + tile.columns, rows) // tile.rows) for j in range(0, rows, tile.columns)
        )
        assert most <= 3 + 1.1 * tiles / min(groups * bands, processors * tile.resident)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_column(dtype):
    # Rows are 1 or -1: the gradient is 0 but for the rounding of norms.
    leaves = [z.requires_grad_() for z in _views(5, 1, dtype)]
    loss = fastssl.nt_xent(*leaves, 0.5, impl="triton")
    loss.backward()
    truth = reference.nt_xent(*(z.detach().double() for z in leaves), 0.5)
    torch.testing.assert_close(loss.double(), truth, rtol=2 * FLOOR[dtype], atol=0)
    assert all(z.grad.abs().max() < 1e-5 for z in leaves)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_through_memory(dtype):
    _check(_views(35, 600, dtype), 0.1)


@pytest.mark.real_tiles
@pytest.mark.parametrize("dtype, d", [(torch.float32, 128), (torch.bfloat16, 20)])
def test_the_launchers_own_tiles(d, dtype):
    _check(_views(70, d, dtype), 0.1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.01, 0.03, 0.1, 10.0, -0.02, -0.3])
def test_temperatures(temperature, dtype):
    _check(_views(20, 33, dtype), temperature)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.02, -0.1])
def test_temperature_tensor(temperature, dtype):
    _check(_views(20, 33, dtype), torch.tensor(temperature))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("d", [16, 150])
def test_reductions(d, reduction, dtype):
    _check(_views(20, d, dtype), 0.2, reduction=reduction)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_without_normalisation(spread, dtype):
    _check(_views(20, 33, dtype, spread), 1.0, normalize=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [1e-3, 1e3])
def test_norms_far_from_one(spread, dtype):
    views = _views(20, 33, dtype)
    views[0][::2] *= spread  # and rows of both kinds in one tile
    _check(views, 0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_at_the_ends_of_float32(dtype):
    views = _views(6, 33, dtype)
    views[0][0] *= 1e25  # its square is not a float32
    views[1][1] *= 1e-9
    leaves = [z.requires_grad_() for z in views]
    loss = fastssl.nt_xent(*leaves, 0.5, impl="triton")
    loss.backward()
    truth = reference.nt_xent(*(z.detach().double() for z in views), 0.5)
    assert abs(loss.item() - truth.item()) <= 1e-2 * truth.item()
    assert all(z.grad.isfinite().all() for z in leaves)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(dtype):
    base = torch.randn(37, 2, 80, generator=torch.Generator().manual_seed(0)).to(dtype)
    views = [base[:, 0, ::2], base[:, 1, :40].t().contiguous().t()]
    plain = _evaluate(
        _fused, [z.clone(memory_format=torch.contiguous_format) for z in views], 0.3, dtype
    )
    leaves = [z.detach().requires_grad_() for z in views]
    loss = fastssl.nt_xent(*leaves, 0.3, impl="triton")
    loss.backward(torch.tensor(1.5, dtype=dtype))
    assert torch.equal(loss, plain[0])
    for z, grad in zip(leaves, plain[1:], strict=True):
        assert torch.equal(z.grad, grad)


def _fused(z0, z1, temperature):
    return fastssl.nt_xent(z0, z1, temperature, impl="triton")


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_pair_is_exactly_zero(dtype):
    leaves = [z.requires_grad_() for z in _views(1, 7, dtype)]
    loss = fastssl.nt_xent(*leaves, 0.1, impl="triton")
    loss.backward()
    assert loss.item() == 0
    assert all(not z.grad.any() for z in leaves)


@pytest.mark.parametrize("d", [16, 150])
def test_one_pair_of_opposite_rows(d):
    # Where no similarity is near 0, those past the last column are above all others.
    z = _views(1, d, torch.float32)[0]
    leaves = [z.clone().requires_grad_(), (-z).requires_grad_()]
    loss = fastssl.nt_xent(*leaves, 0.001, impl="triton")
    loss.backward()
    assert loss.item() == 0
    assert all(not z.grad.any() for z in leaves)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_identical_rows(temperature, dtype):
    row = torch.randn(1, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    leaves = [row.repeat(9, 1).requires_grad_() for _ in range(2)]
    loss = fastssl.nt_xent(*leaves, temperature, impl="triton")
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(17.0).log().item(), rel=4e-3)
    assert all(z.grad.isfinite().all() and z.grad.abs().max() < 1e-2 for z in leaves)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_rows(dtype):
    views = _views(9, 16, dtype)
    views[0][3] = 0
    views[1][3] = 0
    views[1][5] = 0
    # Twice eager's error says nothing next to gradients of 1e12: live and dead rows apart.
    truth = _evaluate(lambda a, b, t: reference.nt_xent(a, b, t), views, 0.5, torch.float64)
    ours = _evaluate(_fused, views, 0.5, dtype)
    torch.testing.assert_close(ours[0].double(), truth[0], rtol=4 * FLOOR[dtype], atol=0)
    for x, t, z in zip(ours[1:], truth[1:], views, strict=True):
        dead = ~z.bool().any(1)
        scale = t[~dead].abs().max()
        assert (x[~dead].double() - t[~dead]).abs().max() <= 4 * FLOOR[dtype] * scale
        assert x.isfinite().all()
        if dtype == torch.float16:
            t = t.clamp(-65504, 65504)
        torch.testing.assert_close(
            x[dead].double(), t[dead], rtol=2e-2, atol=1e-3 * 1e12 * (dtype != torch.float16)
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_what_is_not_a_number_stays(value, temperature):
    views = _views(5, 16, torch.float32)
    views[0][2, 3] = value
    leaves = [z.requires_grad_() for z in views]
    loss = fastssl.nt_xent(*leaves, temperature, impl="triton")
    loss.backward()
    assert loss.isnan()
    assert all(z.grad.isnan().any() for z in leaves)


def test_small_losses_keep_their_digits():
    z = torch.eye(12, 16)
    views = [z, z.clone()]
    rows = fastssl.nt_xent(*views, 0.05, reduction="none", impl="triton")
    truth = reference.nt_xent(*(v.double() for v in views), 0.05, reduction="none")
    torch.testing.assert_close(rows.double(), truth, rtol=1e-5, atol=0)
    _check(views, 0.05)


def test_only_one_input_wants_a_gradient():
    z0, z1 = _views(5, 16, torch.float32)
    z0.requires_grad_()
    fastssl.nt_xent(z0, z1, 0.5, impl="triton").backward()
    assert z0.grad is not None and z1.grad is None
