"""What the functions on patches refuse: messages name the argument, what it was, what may be."""

from dataclasses import replace

import pytest
import torch
from patch_cases import images_of, plan_of

from fastssl import masking
from fastssl.masking import MaskPlan

OPS = torch.ops.fastssl
PLAN, VARYING = plan_of(2, (2, 3), 2), plan_of(2, (2, 3), 6, varying=True)
IMAGES = images_of((2, 3, 8, 12))
META = torch.zeros(2, 6, 48, device="meta")


def loss(**changes):
    arguments = {"images": IMAGES, "pred": torch.zeros(2, 6, 48), "plan": PLAN, "patch_size": 4}
    return masking.masked_patch_loss(**(arguments | changes))


def patches(**changes):
    return masking.gather_patches(**({"images": IMAGES, "plan": PLAN, "patch_size": 4} | changes))


def tokens(**changes):
    return masking.gather_tokens(**({"x": torch.zeros(2, 6, 5), "plan": PLAN} | changes))


def restored(**changes):
    arguments = {"visible": torch.zeros(2, 2, 5), "plan": PLAN, "mask_token": torch.zeros(5)}
    return masking.restore_tokens(**(arguments | changes))


@pytest.mark.parametrize(
    ("function", "changes", "error", "message"),
    [
        (loss, {"images": [0]}, TypeError, "images: got list, must be a tensor"),
        (loss, {"images": IMAGES[0]}, ValueError, "plan: got a plan of B = 2, images has B = 3"),
        (loss, {"images": IMAGES[0, 0]}, ValueError, r"images: got shape \(8, 12\)"),
        (loss, {"images": IMAGES.long()}, TypeError, "images: got dtype torch.int64"),
        (loss, {"images": IMAGES[:, :0]}, ValueError, "images: got shape .*channels"),
        (loss, {"images": IMAGES[..., :0]}, ValueError, r"patch_size: got 4, must divide \(8, 0\)"),
        (
            loss,
            {"images": IMAGES.clone().requires_grad_(), "impl": "cpu"},
            ValueError,
            "images: requires a gradient, impl='cpu' has none",
        ),
        (loss, {"patch_size": 5}, ValueError, r"patch_size: got 5, must divide \(8, 12\)"),
        (loss, {"patch_size": (4, 4, 4)}, ValueError, "patch_size: got .*one number or 2"),
        (loss, {"patch_size": 0}, ValueError, "patch_size: got 0, must be at least 1"),
        (loss, {"patch_size": 4.0}, TypeError, "patch_size: got 4.0, must be whole numbers"),
        (
            loss,
            {"plan": plan_of(2, (3, 2))},
            ValueError,
            r"grid \(3, 2\), images has grid \(2, 3\)",
        ),
        (loss, {"patch_size": 2}, ValueError, "plan: got a plan of L = 6, images has 24 patches"),
        (loss, {"plan": None}, TypeError, "plan: got NoneType, must be a MaskPlan"),
        (loss, {"plan": PLAN.to("meta")}, ValueError, "plan: got device meta"),
        (loss, {"pred": torch.zeros(2, 6, 47)}, ValueError, "pred: got width 47, must be P = 48"),
        (loss, {"pred": torch.zeros(2, 5, 48)}, ValueError, "pred: got 5 patches.*L - K = 4"),
        (loss, {"pred": torch.zeros(2, 4, 48), "plan": VARYING}, ValueError, "must be L = 6$"),
        (loss, {"pred": torch.zeros(1, 6, 48)}, ValueError, "pred: got B = 1"),
        (loss, {"pred": META}, ValueError, "pred: .*meta"),
        (loss, {"pred": torch.zeros(2, 6, 48).long()}, TypeError, "pred: got dtype torch.int64"),
        (loss, {"pred": torch.zeros(6, 48)}, ValueError, r"pred: got shape \(6, 48\)"),
        (loss, {"kind": "l2"}, ValueError, "kind: got 'l2', must be one of mse, l1"),
        (loss, {"statistics": "image"}, ValueError, "statistics: got 'image'"),
        (loss, {"norm_pix": 1}, TypeError, "norm_pix: got 1"),
        (loss, {"order": "qpc"}, ValueError, "order: got 'qpc'"),
        (loss, {"mean": (0.5, 0.5)}, ValueError, "mean: got 2 numbers, images has 3 channels"),
        (loss, {"mean": "0.5"}, TypeError, "mean: got str"),
        (loss, {"std": (1.0, 0.0, 1.0)}, ValueError, "std: got .* must not be 0"),
        (loss, {"std": float("nan")}, ValueError, "std: got .* NaN"),
        (loss, {"impl": "triton"}, ValueError, "impl: got 'triton'"),
        (patches, {"dtype": torch.int8}, TypeError, "dtype: got torch.int8"),
        (patches, {"images": IMAGES.int()}, TypeError, "images: got dtype torch.int32"),
        (patches, {"order": None}, ValueError, "order: got None"),
        (patches, {"plan": plan_of(2, (3, 3))}, ValueError, "plan: got a plan of L = 9"),
        (patches, {"impl": "cuda"}, RuntimeError, "impl='cuda'"),
        (tokens, {"x": torch.zeros(2, 7, 5)}, ValueError, "plan: got .*L = 6, x has 7 patches"),
        (tokens, {"x": torch.zeros(2, 6).long()}, TypeError, "x: got dtype torch.int64"),
        (tokens, {"x": torch.zeros(2, 6)}, ValueError, r"x: got shape \(2, 6\)"),
        (tokens, {"prefix": -1}, ValueError, "prefix: got -1"),
        (tokens, {"prefix": 1.0}, TypeError, "prefix: got 1.0"),
        (tokens, {"pos_embed": torch.zeros(5, 5)}, ValueError, r"pos_embed: .*must be \(6, 5\)"),
        (tokens, {"pos_embed": torch.zeros(2, 6, 5)}, ValueError, "pos_embed: got shape"),
        (restored, {"visible": torch.zeros(2, 3, 5)}, ValueError, "visible: got 3 tokens.*0 . 2"),
        (restored, {"prefix": 1}, ValueError, "visible: got 2 tokens, must be .* 1 . 2"),
        (restored, {"mask_token": torch.zeros(4)}, ValueError, r"mask_token: got \(4,\).*D = 5"),
        (restored, {"mask_token": 0.0}, ValueError, "mask_token: got .*float"),
        (restored, {"mask_token": torch.zeros(5).int()}, TypeError, "mask_token: got dtype"),
        (restored, {"mask_token": META[0, 0, :5]}, ValueError, "mask_token: got device meta"),
        (restored, {"pos_embed": META[0, :, :5]}, ValueError, "pos_embed: got device meta"),
        (restored, {"visible": torch.zeros(3, 2, 5)}, ValueError, "plan: got a plan of B = 2"),
    ],
)
def test_functions(function, changes, error, message):
    if "images" in changes and getattr(changes["images"], "shape", ())[:1] == (3,):
        changes = changes | {"images": IMAGES[0].unsqueeze(0).expand(3, -1, -1, -1)}
    with pytest.raises(error, match=message):
        function(**changes)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: masking.patchify(IMAGES, 3), ValueError, "patch_size: got 3"),
        (lambda: masking.patchify(IMAGES, 4, "cqp"), ValueError, "order: got 'cqp'"),
        (lambda: masking.patchify(None, 4), TypeError, "images: got NoneType"),
        (lambda: masking.unpatchify(None, 4), TypeError, "patches: got NoneType"),
        (lambda: masking.unpatchify(IMAGES, 4), ValueError, "patches: got shape"),
        (lambda: masking.unpatchify(torch.zeros(1, 6, 48), 4), ValueError, r"grid: got \(2, 2\)"),
        (lambda: masking.unpatchify(torch.zeros(1, 4, 47), 4), ValueError, "patches: got width"),
        (lambda: MaskPlan.from_mask(torch.zeros(2, 6)), TypeError, "mask: got torch.float32"),
        (lambda: MaskPlan.from_mask(torch.zeros(6).bool()), ValueError, "mask: got shape"),
        (lambda: MaskPlan.from_mask(PLAN.mask, keep=3), ValueError, "keep: got 3, the mask keeps"),
        (lambda: MaskPlan.from_mask(PLAN.mask, (5,)), ValueError, "grid: got"),
        (lambda: masking.unpatchify(torch.zeros(1, 4, 16), 2, (-2, -2)), ValueError, "grid: got"),
        (lambda: MaskPlan.from_order(PLAN.ids_shuffle, 7), ValueError, "keep: got 7"),
        (lambda: MaskPlan.from_order(PLAN.ids_shuffle, 2.0), TypeError, "keep: got 2.0"),
        (lambda: MaskPlan.from_order(PLAN.ids_shuffle.int(), 2), TypeError, "ids_shuffle: got"),
        (lambda: MaskPlan.from_order(PLAN.ids_shuffle * 0, 2), ValueError, "every patch once"),
        (lambda: MaskPlan.from_order(PLAN.ids_shuffle + 1, 2), ValueError, r"in \[0, 6\)"),
        (lambda: replace(PLAN, mask=~PLAN.mask), ValueError, "mask: must be True where"),
        (lambda: replace(VARYING, keep_lengths=torch.tensor([3, 40])), ValueError, "keep_lengths"),
        (lambda: VARYING.ids_removed, ValueError, "ids_removed: .*varies"),
        (
            lambda: MaskPlan(PLAN.ids_shuffle.int(), PLAN.ids_restore, PLAN.mask, 2, (6,)),
            TypeError,
            "ids_shuffle: got torch.int32",
        ),
        (
            lambda: MaskPlan(PLAN.ids_shuffle, PLAN.ids_restore, PLAN.mask[:1], 2, (6,)),
            ValueError,
            "mask: got",
        ),
        (
            lambda: MaskPlan(
                PLAN.ids_shuffle, PLAN.ids_restore, PLAN.mask, 2, (6,), torch.zeros(3).long()
            ),
            ValueError,
            "keep_lengths: got",
        ),
    ],
)
def test_layout_and_plans(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("bad", [-1, 6, 1 << 40])
def test_kernels_do_not_follow_an_index_out_of_range(bad):
    shuffle, restore = PLAN.ids_shuffle.clone(), PLAN.ids_restore.clone()
    shuffle[1, 0] = bad
    parts = (shuffle, restore, None, 2)
    with pytest.raises(RuntimeError, match="out of range"):
        OPS.patch_gather_tokens(torch.zeros(2, 6, 5), None, *parts, 0)
    numbers = ([4, 4], [0.0] * 3, [1.0] * 3)
    with pytest.raises(RuntimeError, match="out of range"):
        OPS.patch_gather(IMAGES, *parts, *numbers, 0, 1)
    shuffle[1] = torch.tensor([0, 1, bad, 2, 3, 4])
    with pytest.raises(RuntimeError, match="out of range"):
        pred = torch.zeros(2, 4, 48)
        OPS.patch_loss(IMAGES, pred, *parts, *numbers, True, 0, 0, 0, 1.0)
    restore[1, 0] = -1
    with pytest.raises(RuntimeError, match="out of range"):
        visible = torch.zeros(2, 2, 5)
        OPS.patch_restore_tokens(visible, None, None, *parts[:1], restore, None, 2, 0, 1)


def test_kernels_refuse_what_would_be_read_out_of_bounds():
    shuffle, restore = PLAN.ids_shuffle, PLAN.ids_restore
    x, numbers = torch.zeros(2, 6, 5), ([4, 4], [0.0] * 3, [1.0] * 3)
    ids, long = (shuffle, restore), torch.full((2,), 7)
    for call in (
        lambda: OPS.patch_gather_tokens(x, None, shuffle[:1], restore, None, 2, 0),
        lambda: OPS.patch_gather_tokens(x[:1], None, shuffle, restore, None, 2, 0),
        lambda: OPS.patch_gather_tokens(x, None, shuffle, restore, None, 7, 0),
        lambda: OPS.patch_gather_tokens(x, None, shuffle, restore, None, 2, 1),
        lambda: OPS.patch_gather_tokens(x, x[0].double(), shuffle, restore, None, 2, 0),
        lambda: OPS.patch_gather_tokens(x, None, shuffle, restore, long[:1], 2, 0),
        lambda: OPS.patch_restore_tokens(x, None, None, shuffle, restore, None, 2, 0, 1),
        lambda: OPS.patch_restore_tokens(x[:, :2], None, None, shuffle, restore, None, 2, 0, 0),
        lambda: OPS.patch_restore_tokens(x[:, :2], x[0, 0, :4], None, *ids, None, 2, 0, 1),
        lambda: OPS.patch_sum_removed(x, shuffle.int(), restore, None, 2, 0),
        lambda: OPS.patch_gather(IMAGES, shuffle, restore, None, 2, [4, 3], *numbers[1:], 0, 1),
        lambda: OPS.patch_gather(IMAGES, shuffle, restore, None, 2, [4, 4], [0.0], [1.0], 0, 1),
        lambda: OPS.patch_gather(IMAGES, shuffle, restore, None, 2, *numbers, 2, 1),
        lambda: OPS.patch_gather(IMAGES, shuffle, restore, None, 2, *numbers, 0, 4),
        lambda: OPS.patch_loss(
            IMAGES, x, shuffle, restore, None, 2, *numbers, True, 0, 0, 0, 1.0
        ),
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            call()
    # Lengths beyond K are no way out of the rows that there are.
    assert OPS.patch_gather_tokens(x + 1, None, shuffle, restore, long, 2, 0).eq(1).all()
    with pytest.raises(RuntimeError, match="out of range"):
        OPS.patch_restore_tokens(x[:, :2], None, None, shuffle, restore, long, 2, 0, 1)
