"""Probes by name: what each does with an encoder and the labels that it is shown."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastssl.train.errors import UsageError
from fastssl.train.evaluation.features import Subject
from fastssl.train.evaluation.finetune import finetune
from fastssl.train.evaluation.knn import knn
from fastssl.train.evaluation.linear import linear_probe, logistic


@dataclass(frozen=True)
class Probe:
    """A way to predict classes from few labels.

    Attributes:
        predict: called with a `Subject`, the labelled training samples, int64 [n], and a seed;
            returns the classes of all test samples, [M].
        least: labels below which it says nothing of its own.
    """

    predict: Callable[[Subject, np.ndarray, int], np.ndarray]
    least: int = 2


def _knn(subject: Subject, ids: np.ndarray, seed: int, k: int) -> np.ndarray:
    features = subject.features
    train, test = (_on(subject, part) for part in (features.train[ids], features.test))
    return knn(train, _labels(subject, ids), test, k).cpu().numpy()


def _logistic(subject: Subject, ids: np.ndarray, seed: int) -> np.ndarray:
    features = subject.features.standardised
    return logistic(features.train[ids], subject.data.train.labels.numpy()[ids], features.test)


def _linear(subject: Subject, ids: np.ndarray, seed: int) -> np.ndarray:
    features = subject.features.standardised
    train, test = (_on(subject, part) for part in (features.train[ids], features.test))
    return linear_probe(train, _labels(subject, ids), test, seed).cpu().numpy()


def _finetune(subject: Subject, ids: np.ndarray, seed: int) -> np.ndarray:
    chosen = torch.from_numpy(ids)
    return finetune(subject.encoder, subject.data, chosen, seed, subject.device).numpy()


def _on(subject: Subject, features: np.ndarray) -> Tensor:
    return torch.from_numpy(features).to(subject.device)


def _labels(subject: Subject, ids: np.ndarray) -> Tensor:
    return subject.data.train.labels[ids].to(subject.device)


#: All probes. Neighbours that are not there cannot vote.
PROBES = {
    "knn-20": Probe(partial(_knn, k=20), least=20),
    "knn-200": Probe(partial(_knn, k=200), least=200),
    "logistic": Probe(_logistic),
    "linear": Probe(_linear),
    "finetune": Probe(_finetune),
}


def find(name: str) -> Probe:
    """The probe of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in PROBES:
        near = difflib.get_close_matches(name, PROBES, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UsageError(f"probes: got {name!r}, must be one of {', '.join(PROBES)}{hint}")
    return PROBES[name]
