"""What the contrastive family's Triton kernels are compiled with, as the launcher does."""

import torch

from benchmarks.machine_code.compiled import compile_kernel
from benchmarks.machine_code.nt_xent import OPERANDS
from fastssl.ops.contrast import triton_backward, triton_forward, triton_rows, triton_weights
from fastssl.ops.contrast.pairs import LABELLED, PAIRED, SIGMOID, SOFTMAX
from fastssl.ops.contrast.triton import DROPPED, METRICS, NONE, POSITIVE
from fastssl.ops.contrast.triton_tiles import family_tiles
from fastssl.ops.nt_xent.triton_tiles import padded_depth

KERNELS = {
    "forward": triton_forward.sum_pairs,
    "backward": triton_backward.accumulate_pairs,
    "weights": triton_backward.write_pair_weights,
}
_PLAIN = {
    "KIND": SOFTMAX, "LABELS": NONE, "DIAGONAL": False, "EXCLUDED": False, "PARTNER": True,
    "WINDOW": False, "OTHER_WINDOW": False, "OWN": True, "OTHER": True, "TWO": False,
    "BIASED": False,
}  # fmt: skip
_LABELS = {"DIAGONAL": True, "PARTNER": False, "TWO": True, "LABELS": POSITIVE}
#: Losses by the policies that their kernels are compiled with.
POLICIES = {
    "info_nce, both ways": {},
    "info_nce": {"OTHER": False},
    "queue": {"OTHER": False, "PARTNER": False},
    "views": {"DIAGONAL": True, "TWO": True},
    "siglip": {"KIND": SIGMOID, "OTHER": False, "BIASED": True},
    "sup_con": {"KIND": LABELLED, **_LABELS},
    "pair_nt_xent": {"KIND": PAIRED, **_LABELS},
    "labels and windows": {"LABELS": DROPPED, "WINDOW": True, "OTHER_WINDOW": True},
    "metrics": {"KIND": METRICS},
}
#: The policies that may not spill at the main sizes.
MAIN = ("info_nce, both ways", "info_nce", "queue", "views", "siglip", "sup_con")
_FLOATS = (
    "left_scale", "right_scale", "scale", "bias", "sums", "out", "block_sums", "own", "other",
    "inverse", "inverse_norm", "unit", "block_along", "block_pull", "positive", "of_scale",
    "of_bias",
)  # fmt: skip
_INDICES = ("excluded", "partner", "row_labels", "column_labels")
_DOUBLES = (
    "window", "other_window", "known", "statistics", "gradient", "own_statistics", "own_gradient",
    "other_statistics", "other_gradient",
)  # fmt: skip
_SCALARS = {
    "factor": "fp32", "part": "fp32", "rows": "i32", "columns": "i32", "left_padded": "i32:16",
    "right_padded": "i32:16", "padded": "i32:16", "span": "i32:16", "chunk": "i32:16",
    "chunk_rows": "i32:16", "depth": "i32:16", "splits": "i32", "blocks": "i32", "tiles": "i32",
    "row_stride": "i32:16",
}  # fmt: skip


def _pointers(dtype) -> dict[str, str]:
    operand, _ = OPERANDS[dtype]
    kinds = ((_FLOATS, "fp32"), (_INDICES, "i64"), (_DOUBLES, "fp64"))
    found = {name: kind for names, kind in kinds for name in names}
    return {**found, "left": operand, "right": operand, "packed": operand}


def tiles_of(policy, architecture, dtype, depth):
    """The launcher's tiles."""
    made = {**_PLAIN, **POLICIES[policy]}
    both = made["OWN"] and made["OTHER"]
    parts, depth = OPERANDS[dtype][1], padded_depth(depth)
    return family_tiles(architecture, parts, depth, made["KIND"], both, made["WINDOW"])


def kernels_for(policy, architecture, dtype, depth) -> list[str]:
    """Names of the matrix kernels that run for a policy."""
    tiles = tiles_of(policy, architecture, dtype, depth)
    names = [name for name in KERNELS if getattr(tiles, name) is not None]
    return names[:1] if policy == "metrics" else names


def tile_for(policy, name, architecture, dtype, depth):
    """The launcher's tile."""
    return getattr(tiles_of(policy, architecture, dtype, depth), name)


def forms(policy, name) -> list[bool]:
    """Whether a policy is compiled with BOUNDED."""
    kind = POLICIES[policy].get("KIND", SOFTMAX)
    return [True, False] if kind in (SOFTMAX, LABELLED) else [False]


def compile_for(policy, name, architecture, dtype, depth, bounded=True):
    """One matrix kernel, compiled as the launcher would launch it."""
    kernel = KERNELS[name]
    _, parts = OPERANDS[dtype]
    arguments = tile_for(policy, name, architecture, dtype, depth).arguments()
    options = {key: arguments.pop(key) for key in ("num_warps", "num_stages")}
    constants = {
        **_PLAIN, **POLICIES[policy], "LEARNED": not bounded, "BOUNDED": bounded, "PARTS": parts,
        "DEPTH": padded_depth(depth), **arguments,
    }  # fmt: skip
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    pointers = _pointers(dtype)
    if name != "forward":
        pointers["inverse"] = "i64"
    if name == "weights":
        pointers["out"] = OPERANDS[dtype][0]
    return compile_kernel(kernel, pointers, _SCALARS, constants, architecture, **options)


def compile_row_kernels(architecture, dtype, kind=SOFTMAX, bounded=True):
    """Every kernel that is no matrix product, as (name, compiled), at D = 128."""
    operand, parts = OPERANDS[dtype]
    element = {torch.float32: "fp32"}.get(dtype, operand)
    constants = {
        **_PLAIN, "KIND": kind, "LEARNED": not bounded, "BOUNDED": bounded, "PARTS": parts,
        "DEPTH": 128, "NORMALIZE": True, "INVERSE": False, "BEST": True, "BLOCK": 256,
        "BLOCK_M": 16, "BLOCK_D": 128, "column_stride": 1,
    }  # fmt: skip
    modules = {
        triton_rows: ("pack_rows", "partner_products", "finish_statistics", "finish_metrics"),
        triton_weights: ("bound_gradients", "weigh_pairs", "finish_pairs", "add_up_pairs"),
    }
    for module, names in modules.items():
        for name in names:
            kernel = getattr(module, name)
            pointers = {**_pointers(dtype), "x": element}
            if name == "finish_pairs":
                pointers |= {"out": element, "inverse": "i64"}
            known = {key: value for key, value in constants.items() if key in kernel.arg_names}
            compiled = compile_kernel(
                kernel, pointers, _SCALARS, known, architecture, num_warps=4, num_stages=3
            )
            yield name, compiled
    pointers = {"index": "i64", "inverse": "i64"}
    yield (
        "invert",
        compile_kernel(
            triton_rows.invert, pointers, _SCALARS, {"BLOCK": 256}, architecture, num_warps=4
        ),
    )
