"""Weighted nearest neighbours of frozen features."""

import torch
from torch import Tensor
from torch.nn import functional as F

#: Published setting: Wu et al. 2018, section 3.4, and DINO's evaluation.
TEMPERATURE = 0.07

#: Similarities that are held at a time.
BLOCK = 2**25


def knn(
    train: Tensor, labels: Tensor, test: Tensor, k: int, temperature: float = TEMPERATURE
) -> Tensor:
    """The class that the k most similar training samples vote for.

    A neighbour's vote weighs exp(cosine similarity / temperature). Wu et al., "Unsupervised Feature
    Learning via Non-Parametric Instance Discrimination", 2018; with k = 20 and 200 in Caron et al.,
    "Emerging Properties in Self-Supervised Vision Transformers", 2021.

    Args:
        train: floating-point [N, D].
        labels: int64 [N], none negative.
        test: [M, D], on the same device.
        k: neighbours; all N where there are fewer.
        temperature: of the weights.

    Returns:
        int64 [M].
    """
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    votes = torch.zeros(len(test), int(labels.max()) + 1, dtype=train.dtype, device=train.device)
    rows = max(1, BLOCK // len(train))
    for part, into in zip(test.split(rows), votes.split(rows), strict=True):
        similar, neighbours = (part @ train.T).topk(min(k, len(train)), dim=1)
        # Less 1, the highest similarity: the same proportions, and no overflow.
        into.scatter_add_(1, labels[neighbours], ((similar - 1) / temperature).exp())
    return votes.argmax(1)
