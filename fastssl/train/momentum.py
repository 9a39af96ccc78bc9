"""Teachers that follow their students: a moving average of the parameters (BYOL, DINO, MoCo)."""

import copy
import math

import torch
from torch import nn


def teacher_of(student: nn.Module) -> nn.Module:
    """A copy of a module that no gradient reaches and no optimizer moves."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Moves each parameter of the teacher to momentum * teacher + (1 - momentum) * student.

    Buffers are left alone: batch norm's statistics are those of what the teacher has seen itself.
    """
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    own, theirs = ([pair[i] for pair in pairs] for i in (0, 1))
    torch._foreach_lerp_(own, theirs, 1 - momentum)


def rising(start: float, progress: float) -> float:
    """A momentum that rises from `start` to 1 along half a cosine, `progress` from 0 to 1."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * progress)) / 2
