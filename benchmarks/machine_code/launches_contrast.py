"""The calls of the contrastive family that the model predicts."""

from collections.abc import Callable

import torch

from benchmarks.machine_code.calls import Call
from benchmarks.machine_code.launched import meta
from benchmarks.machine_code.record import Work
from fastssl.ops.contrast import schema, triton, triton_gradient, triton_kept
from fastssl.ops.contrast.pairs import LABELLED, PAIRED, ROWS, SIGMOID, SOFTMAX, Pairs

TEST = "tests/triton_interpret/test_contrast.py"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
#: Queries that a queue is met by, as in benchmarks/gpu_contrast.py.
QUERIES = 4096
#: Losses by what their pairs are: (kind, y is x, columns have statistics, partner, labels, a
#: learned scale, a bias, windows, metrics).
_LOSSES: dict[str, dict] = {
    "info_nce": {"columns": True, "partner": True},
    "clip": {"columns": True, "partner": True, "learned": True},
    "siglip": {"kind": SIGMOID, "partner": True, "learned": True, "biased": True},
    "sup_con": {"kind": LABELLED, "itself": True, "labels": True},
    "queue": {},
    "views": {"itself": True, "partner": True},
    "pair_nt_xent": {"kind": PAIRED, "itself": True, "labels": True},
    "labels and windows": {"columns": True, "partner": True, "labels": True, "windows": True},
    "metrics": {"columns": True, "partner": True, "metrics": True},
}
LOSSES = tuple(_LOSSES)
#: Products of all pairs that a loss and its gradients need at least, and exponentials.
_LEAST = {"sup_con": (2, 1), "views": (2, 1), "pair_nt_xent": (2, 3), "queue": (2, 1)}


def _pairs(loss: str, rows: int, depth: int, dtype: str) -> Pairs:
    made = _LOSSES[loss]
    left = min(rows, QUERIES) if loss == "queue" else rows
    x = meta(left, depth, dtype=DTYPES[dtype])
    y = None if made.get("itself") else meta(rows, depth, dtype=DTYPES[dtype])

    def index(count: int, key: str) -> torch.Tensor | None:
        return meta(count, dtype=torch.int64) if made.get(key) else None

    def window(count: int) -> torch.Tensor | None:
        return meta(2, count, dtype=torch.float64) if made.get("windows") else None

    return Pairs(
        x=x, y=y, scale=meta() if made.get("learned") else None, factor=10.0,
        bias=meta() if made.get("biased") else None, kind=made.get("kind", SOFTMAX),
        normalize_x=True, normalize_y=True, columns=made.get("columns", False),
        metrics=made.get("metrics", False), excluded=None, partner=index(left, "partner"),
        row_labels=index(left, "labels"),
        column_labels=None if y is None else index(rows, "labels"), row_window=window(left),
        column_window=None if y is None else window(rows), threshold=None,
    )  # fmt: skip


def _runner(p: Pairs) -> Callable[[], None]:
    def kept() -> None:
        rows, _, found = triton.forward_kept(*p)
        grad = meta(*rows.shape, dtype=torch.float64)
        triton.backward_kept(found, *p, rows, grad, grad, grad, True, True)

    def run() -> None:
        rows, columns = triton.forward(*p)
        if p.metrics:
            return  # they have no gradient
        rows_grad, columns_grad = (
            meta(ROWS, s.shape[1], dtype=torch.float64) for s in (rows, columns)
        )
        # A queue is constant.
        want_y = bool(p.columns or p.scale is not None)
        triton.backward(*p, rows[:ROWS], rows_grad, columns, columns_grad, True, want_y)

    # As `fastssl.siglip_loss` does where it averages.
    sides = {
        n: None if z is None else z.detach().requires_grad_()
        for n, z in zip("xy", p[:2], strict=True)
    }
    return kept if schema.gradients_worth_keeping(p._replace(**sides)) else run


def call(loss: str, rows: int, depth: int, dtype: str = "bfloat16", main: bool = False) -> Call:
    """Statistics and the gradients of both matrices (of the queries, for a queue)."""
    p = _pairs(loss, rows, depth, dtype)
    products, exponentials = _LEAST.get(loss, (3, 1))
    size = DTYPES[dtype].itemsize
    pairs = float(p.x.shape[0]) * (rows if p.y is None else p.y.shape[0])
    halves = 0.5 if p.y is None else 0.0  # symmetric logits need be computed once
    parts = 3 if dtype == "float32" else 1
    matrices = 1 if p.y is None else 2
    moved = size * depth * (2 * p.x.shape[0] + (matrices - 1) * rows)
    if loss == "metrics":
        products = 1
    work = Work(
        2.0 * (products - halves) * pairs * depth * parts, exponentials * pairs, float(moved)
    )
    modules = (triton, triton_gradient, triton_kept)
    shape = {"rows": rows, "depth": depth, "dtype": dtype}
    return Call("contrast", loss, shape, work, _runner(p), TEST, modules, main)


#: Losses whose kernels may not spill at D <= 128 in half precision.
MAIN = ("info_nce", "clip", "siglip", "sup_con", "queue", "views")


def calls() -> list[Call]:
    """Every loss at D = 128; the losses that people train with at other depths and sizes."""
    found = [call(loss, 32768, 128, main=loss in MAIN) for loss in LOSSES]
    for loss in ("info_nce", "sup_con"):
        found.append(call(loss, 32768, 64, main=True))
        found.append(call(loss, 32768, 128, "float16", main=True))
        found.append(call(loss, 32768, 128, "float32"))
    for rows, depth in ((32768, 512), (8192, 512), (8192, 128)):
        found += [call(loss, rows, depth) for loss in LOSSES[:5]]
    for depth in (256, 768):
        found += [call(loss, 32768, depth) for loss in ("info_nce", "siglip", "sup_con")]
    found.append(call("siglip", 65536, 768))
    return found
