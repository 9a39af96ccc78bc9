"""I-JEPA on handwritten digits: predict features of blocks of an image, not their pixels.

    python examples/ijepa_digits.py

Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive
Architecture", 2023. An encoder sees a part of each image, the context; from what it makes of that,
a predictor is to say what a slow copy of the encoder, which sees all, makes of four other blocks.
Contexts differ in size: `multiblock_masks` fills them up, and attention skips the filling. The
digits are images of 4 x 4 patches. Ends with the accuracy of a logistic regression on the features,
beside that of the untrained encoder: under two minutes on two CPU cores.
"""

import argparse
import copy
import math
import time
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl import masking
from fastssl.train import data, evaluation, vit
from fastssl.train.momentum import follow
from fastssl.train.views import MEAN, STD, to_float

PATCH = 8
BATCH = 32
SIZE = "vit-micro"

#: The context has more patches than this; the paper has 10, of 16 x 16.
MIN_KEEP = 3

#: The copy follows the encoder ever more slowly, from this to 1; from 0.996 in the paper, whose
#: runs are hundreds of times longer.
MOMENTUM = 0.99


class Predictor(nn.Module):
    """From the context's tokens and the places of a block to the features of the block."""

    def __init__(self, width: int, inner: int, depth: int, heads: int, grid: tuple[int, int]):
        super().__init__()
        self.embed = nn.Linear(width, inner)
        self.register_buffer("pos_embed", vit.positions(grid, inner)[0])
        self.mask_token = nn.Parameter(torch.empty(inner))
        self.blocks = vit.blocks(inner, depth, heads)
        self.norm = nn.LayerNorm(inner, eps=1e-6)
        self.project = nn.Linear(inner, width)
        self.apply(vit.initialise)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, plan: masking.MultiblockPlan) -> Tensor:
        """Context tokens [B, K, width] to features [B, T, Kt, width] of all T blocks."""
        batch, count, size = plan.targets.shape
        context = self.embed(tokens) + self.pos_embed[plan.context.ids_keep]
        wanted = self.mask_token + self.pos_embed[plan.targets]
        # Each block is predicted by itself: the context once for each.
        context = context.repeat_interleave(count, 0)
        x = torch.cat([context, wanted.flatten(0, 1)], 1)
        padding = F.pad(plan.context.padding.repeat_interleave(count, 0), (0, size), value=False)
        for block in self.blocks:
            x = block(x, padding)
        made = self.project(self.norm(x[:, -size:]))
        return made.unflatten(0, (batch, count))


def see_context(encoder: vit.VisionTransformer, images: Tensor, plan: masking.MaskPlan) -> Tensor:
    """Tokens [B, K, width] of the kept patches of uint8 images; no other pixel is read."""
    patches = masking.gather_patches(images, plan, PATCH, MEAN, STD)
    tokens = encoder.embed(patches) + encoder.pos_embed[0][plan.ids_keep]
    return encoder.encode(tokens, plan.padding)


@torch.no_grad()
def targets_of(teacher: vit.VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
    """Normalised features [B, T, Kt, width] of blocks of patches, by an encoder that sees all."""
    patches = masking.patchify(to_float(images), PATCH, order="cpq")
    features = teacher.encode(teacher.embed(patches) + teacher.pos_embed)
    features = F.layer_norm(features, features.shape[-1:])
    sample = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    return features[sample, targets]


def rate(step: int, steps: int, peak: float) -> float:
    """A linear rise in the first tenth, then half a cosine to zero."""
    rise = max(1, steps // 10)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def train(images: Tensor, steps: int, peak: float, seed: int) -> tuple[nn.Module, nn.Module]:
    """(the untrained encoder, the trained teacher) for uint8 images [N, 1, 32, 32]."""
    torch.manual_seed(seed)
    encoder = vit.VisionTransformer(1, tuple(images.shape[2:]), PATCH, SIZE)
    predictor = Predictor(encoder.features, 48, depth=2, heads=4, grid=encoder.grid)
    untrained, teacher = copy.deepcopy(encoder), copy.deepcopy(encoder)
    parameters = [*encoder.parameters(), *predictor.parameters()]
    optimizer = torch.optim.AdamW(parameters, peak, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak)
        ids = torch.randperm(len(images), generator=generator)[:BATCH]
        plan = masking.multiblock_masks(
            BATCH, encoder.grid, seed=seed, step=step, sample_ids=ids, min_keep=MIN_KEEP
        )
        # No longer than the longest context here; on a GPU, where this would wait, leave them.
        plan = replace(plan, context=plan.context.trimmed())
        predicted = predictor(see_context(encoder, images[ids], plan.context), plan)
        loss = F.smooth_l1_loss(predicted, targets_of(teacher, images[ids], plan.targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        follow(teacher, encoder, MOMENTUM + (1 - MOMENTUM) * step / steps)
        if step % 100 == 0 or step == steps - 1:
            seconds = time.perf_counter() - start
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)
    return untrained, teacher


def main(arguments: list[str] | None = None) -> None:
    """What the command runs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    digits = data.load("digits")
    encoders = train(digits.train.inputs, args.steps, args.lr, args.seed)
    print("test accuracy, %   untrained    I-JEPA")
    for row in evaluation.rows(*encoders, digits, ["logistic"]):
        labels = "all labels" if row.labels == "all" else f"{row.labels} per class"
        print(f"{labels:16}{100 * row.untrained.mean:12.1f}{100 * row.pretrained.mean:10.1f}")


if __name__ == "__main__":
    main()
