"""The contrastive family: one engine, every loss.

A loss is a formula over a few numbers for each row: log-sum-exp over its negatives, its positive's
logit, and so on. `core.statistics` computes those without the matrix of logits, and their
gradients; pairs.py says what a pair can be; the losses stand in files of their own.
docs/contrast.md derives what the kernels compute.
"""

from fastssl.ops.contrast.clip import clip_loss, siglip_loss
from fastssl.ops.contrast.info_nce import info_nce
from fastssl.ops.contrast.sup_con import pair_nt_xent, sup_con
from fastssl.ops.contrast.views import dcl, dclw

__all__ = ["clip_loss", "dcl", "dclw", "info_nce", "pair_nt_xent", "siglip_loss", "sup_con"]
