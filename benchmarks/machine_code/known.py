"""Kernels whose times others have published, for the model to be checked with.

A product, a softmax and attention's forward pass, as plain as Triton's tutorials have them: no
autotuner, no descriptors, no warp specialisation.
"""

import triton
import triton.language as tl

from benchmarks.machine_code.compiled import compile_kernel

LOG2_E = 1.4426950408889634


@triton.jit
def multiply(
    a, b, c, rows, columns, depth,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """C = A B, all row-major; depth is a multiple of BLOCK_K.

    GROUP blocks of rows go through the columns together, for what they share to stay in L2.
    """
    program = tl.program_id(0)
    across = tl.cdiv(columns, BLOCK_N)
    group = program // (GROUP * across)
    height = tl.minimum(tl.cdiv(rows, BLOCK_M) - group * GROUP, GROUP)
    block_m = group * GROUP + (program % (GROUP * across)) % height
    block_n = (program % (GROUP * across)) // height
    # Beyond the edge rows and columns are read again, and not written.
    m = (block_m * BLOCK_M + tl.arange(0, BLOCK_M)) % rows
    n = (block_n * BLOCK_N + tl.arange(0, BLOCK_N)) % columns
    k = tl.arange(0, BLOCK_K)
    left = a + m[:, None] * depth + k[None, :]
    right = b + k[:, None] * columns + n[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, depth, BLOCK_K):
        total = tl.dot(tl.load(left), tl.load(right), total)
        left += BLOCK_K
        right += BLOCK_K * columns
    m = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (m[:, None] < rows) & (n[None, :] < columns)
    out = c + m[:, None] * columns + n[None, :]
    tl.store(out, total.to(c.dtype.element_ty), mask=inside)


@triton.jit
def softmax(out, x, rows, columns, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """Softmax of each row; a program takes every so-manieth row whole (BLOCK >= columns)."""
    n = tl.arange(0, BLOCK)
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=STAGES):
        values = tl.load(x + row * columns + n, mask=n < columns, other=-float("inf"))
        values = tl.exp(values - tl.max(values, 0))
        tl.store(out + row * columns + n, values / tl.sum(values, 0), mask=n < columns)


@triton.jit
def _columns(
    query, k, v, total, peak, mass, factor, m, low, high,
    DEPTH: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Takes the keys from low to high into the running sums of a block of queries."""
    d = tl.arange(0, DEPTH)
    for start in range(low, high, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        scores = tl.dot(query, tl.load(k + n[None, :] * DEPTH + d[:, None])) * factor
        if MASK:
            scores = tl.where(m[:, None] >= n[None, :], scores, -1e30)
        above = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.math.exp2(scores - above[:, None])
        shrink = tl.math.exp2(peak - above)
        mass = mass * shrink + tl.sum(weights, 1)
        values = tl.load(v + n[:, None] * DEPTH + d[None, :])
        total = tl.dot(weights.to(v.dtype.element_ty), values, total * shrink[:, None])
        peak = above
    return total, peak, mass


@triton.jit
def attend(
    q, k, v, out, lse, factor, length,
    DEPTH: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """softmax(factor q k^T / log2 e) v of each head, and the base-2 log of each row's sum.

    q, k, v and out are (heads, length, DEPTH); length is a multiple of both blocks. Causal: keys up
    to the query's own place; whole blocks before the diagonal need no mask.
    """
    block, head = tl.program_id(0), tl.program_id(1)
    base = head.to(tl.int64) * length * DEPTH
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, DEPTH)
    query = tl.load(q + base + m[:, None] * DEPTH + d[None, :])
    total = tl.zeros((BLOCK_M, DEPTH), tl.float32)
    peak = tl.full((BLOCK_M,), -1e30, tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    whole = block * BLOCK_M if CAUSAL else length
    total, peak, mass = _columns(
        query, k + base, v + base, total, peak, mass, factor, m, 0, whole, DEPTH, BLOCK_N, False
    )
    if CAUSAL:
        total, peak, mass = _columns(
            query, k + base, v + base, total, peak, mass, factor, m, whole, whole + BLOCK_M,
            DEPTH, BLOCK_N, True,
        )  # fmt: skip
    total = total / mass[:, None]
    tl.store(out + base + m[:, None] * DEPTH + d[None, :], total.to(out.dtype.element_ty))
    tl.store(lse + head * length + m, peak + tl.math.log2(mass))


#: Rows x columns x depth of a program's tile, warps, stages: those of the tutorial's list that win.
PRODUCT_TILES = (
    (128, 256, 64, 8, 3), (128, 128, 32, 4, 4), (64, 256, 32, 4, 4), (64, 128, 32, 4, 4),
)  # fmt: skip
#: Queries x keys of a program's tile, warps, stages; by compute capability and depth.
ATTENTION_TILES = {
    (80, 64): (128, 64, 4, 3), (80, 128): (128, 64, 8, 3),
    (90, 64): (128, 64, 4, 3), (90, 128): (128, 64, 8, 3),
}  # fmt: skip


def compile_product(arch: int, tile: tuple[int, ...] = PRODUCT_TILES[0], element: str = "fp16"):
    """The product, for sizes that are multiples of 16."""
    m, n, k, warps, stages = tile
    return compile_kernel(
        multiply,
        dict.fromkeys(("a", "b", "c"), element),
        dict.fromkeys(("rows", "columns", "depth"), "i32:16"),
        {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 8},
        arch,
        num_warps=warps,
        num_stages=stages,
    )


def compile_softmax(arch: int, columns: int):
    """The softmax of float32 rows, as long as `columns` or a little shorter."""
    stages = 4 if arch == 90 else 2
    return compile_kernel(
        softmax,
        {"out": "fp32", "x": "fp32"},
        {"rows": "i32:16", "columns": "i32:16"},
        {"BLOCK": triton.next_power_of_2(columns), "STAGES": stages},
        arch,
        num_warps=8,
    )


def compile_attention(arch: int, depth: int, causal: bool, element: str = "fp16"):
    """Attention's forward pass, for lengths that are multiples of 16."""
    m, n, warps, stages = ATTENTION_TILES[arch, depth]
    return compile_kernel(
        attend,
        {**dict.fromkeys(("q", "k", "v", "out"), element), "lse": "fp32"},
        {"factor": "fp32", "length": "i32:16"},
        {"DEPTH": depth, "CAUSAL": causal, "BLOCK_M": m, "BLOCK_N": n},
        arch,
        num_warps=warps,
        num_stages=stages,
    )
