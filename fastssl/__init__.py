"""fastssl: the parts of self-supervised learning that are not the network, fused.

from fastssl import NTXentLoss

loss = NTXentLoss(temperature=0.5)(z0, z1)
"""

from fastssl import augment, masking
from fastssl.cached import cached_step
from fastssl.losses import (
    CLIPLoss,
    DCLLoss,
    DCLWLoss,
    InfoNCELoss,
    NTXentLoss,
    PairNTXentLoss,
    SigLIPLoss,
    SupConLoss,
)
from fastssl.memory_bank import MemoryBank
from fastssl.ops.contrast import (
    clip_loss,
    dcl,
    dclw,
    info_nce,
    pair_nt_xent,
    siglip_loss,
    sup_con,
)
from fastssl.ops.nt_xent import nt_xent

__version__ = "0.1.0"

__all__ = [
    "CLIPLoss",
    "DCLLoss",
    "DCLWLoss",
    "InfoNCELoss",
    "MemoryBank",
    "NTXentLoss",
    "PairNTXentLoss",
    "SigLIPLoss",
    "SupConLoss",
    "__version__",
    "augment",
    "cached_step",
    "clip_loss",
    "dcl",
    "dclw",
    "info_nce",
    "masking",
    "nt_xent",
    "pair_nt_xent",
    "siglip_loss",
    "sup_con",
]
