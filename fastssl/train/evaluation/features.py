"""What an encoder makes of a data set."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from fastssl.train.data import Data
from fastssl.train.errors import UsageError
from fastssl.train.views import to_float

#: Samples that pass an encoder together.
BATCH = 500


@dataclass(frozen=True)
class Features:
    """Features [N, D], float32, of the training and of the test samples."""

    train: np.ndarray
    test: np.ndarray

    @cached_property
    def standardised(self) -> "Features":
        """The same by the training samples' mean and scale.

        Of all training samples, whichever labels are shown: standardising takes no labels.
        """
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(self.train)
        return Features(scaler.transform(self.train), scaler.transform(self.test))


class Subject:
    """An encoder under test. Its features are computed once, when a probe first asks for them.

    Args:
        encoder: inputs to features [N, D]; moved to the device where it is used.
        data: what it is tested on.
        device: where it computes.
        features: if they are known.
    """

    def __init__(
        self, encoder: nn.Module, data: Data, device: torch.device, features: Features | None = None
    ):
        self.encoder, self.data, self.device = encoder, data, device
        if features is not None:
            self.features = features

    @cached_property
    def features(self) -> Features:
        """Of all samples, as `extract` returns them."""
        return extract(self.encoder, self.data, self.device)


def extract(
    backbone: nn.Module, data: Data, device: torch.device | str, batch: int = BATCH
) -> Features:
    """Raw features of all samples of a data set under a frozen encoder, in evaluation mode.

    Args:
        backbone: inputs, scaled by `fastssl.train.views.to_float`, to features [N, D].
        data: inputs that are read when needed are read batch by batch.
        device: where the encoder computes, and stays.
        batch: samples that pass it together.

    Raises:
        UsageError: a feature is not finite.
    """
    splits = (data.train, data.test)
    return Features(*(encode(backbone, s.inputs, device, batch=batch).numpy() for s in splits))


def encode(
    module: nn.Module,
    inputs,
    device: torch.device | str,
    ids: Tensor | None = None,
    batch: int = BATCH,
) -> Tensor:
    """What a module makes of samples, without gradients and in evaluation mode.

    Args:
        module: moved to the device; the modes of its parts are restored.
        inputs: a `Split`'s, N samples.
        device: where the module computes.
        ids: which of them, int64 [n], on the CPU; None for all.
        batch: samples that pass the module together.

    Returns:
        float32 [n, D] on the CPU.

    Raises:
        UsageError: a number is not finite.
    """
    module = module.to(device)
    precision = next((p.dtype for p in module.parameters()), torch.float32)
    count = len(inputs) if ids is None else len(ids)
    parts = []
    with _evaluating(module), torch.inference_mode():
        for start in range(0, count, batch):
            part = slice(start, start + batch)
            read = inputs[part if ids is None else ids[part]]
            scaled = to_float(read.to(device))
            if scaled.is_floating_point():
                scaled = scaled.to(precision)
            parts.append(module(scaled).float().cpu())
    encoded = torch.cat(parts)
    if not encoded.isfinite().all():
        raise UsageError("backbone: its features are not finite; train with a lower lr")
    return encoded


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
