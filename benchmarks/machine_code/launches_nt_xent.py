"""The calls of nt_xent that the model predicts."""

import itertools

import torch

from benchmarks.machine_code.calls import Call
from benchmarks.machine_code.launched import meta
from benchmarks.machine_code.record import Work
from fastssl.ops.nt_xent import schema, triton

TEST = "tests/triton_interpret/test_nt_xent.py"
DTYPES = {
    "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32,
}  # fmt: skip
DEPTHS = (64, 128, 256, 512, 768)
_MEAN = schema.REDUCTIONS.index("mean")


def call(rows: int, depth: int, dtype: str, learned: bool = False) -> Call:
    """Forward and backward of a mean loss."""
    z = meta(rows // 2, depth, dtype=DTYPES[dtype])
    number = meta() if learned else None

    def run() -> None:
        _, lse, miss = triton.forward(z, z, number, 0.1, True, _MEAN)
        triton.backward(meta(), z, z, number, 0.1, True, _MEAN, lse, miss)

    # Logits are symmetric: half of them, each once forward and once backward; the gradient is a
    # product with all. Inputs are read twice, gradients written. Two-part products are three.
    products = 3 if dtype == "float32" else 1
    pairs = rows * rows
    work = Work(
        2.0 * 2 * pairs * depth * products,
        float(pairs),
        3.0 * rows * depth * DTYPES[dtype].itemsize,
    )
    size = {"rows": rows, "depth": depth, "dtype": dtype}
    case = "nt_xent, learned temperature" if learned else "nt_xent"
    main = dtype != "float32" and depth <= 128
    return Call("nt_xent", case, size, work, run, TEST, (triton,), main)


def calls() -> list[Call]:
    """All depths and types at the main size; sizes at the main depths."""
    main = itertools.product(DEPTHS, ("bfloat16", "float32"))
    found = [call(65536, depth, dtype) for depth, dtype in main]
    found += [call(65536, depth, "float16") for depth in (64, 128)]
    found += [call(65536, depth, "bfloat16", learned=True) for depth in (64, 128)]
    sizes = itertools.product((512, 2048, 8192, 32768, 262144), (128, 768))
    found += [
        call(rows, depth, dtype) for rows, depth in sizes for dtype in ("bfloat16", "float32")
    ]
    return found
