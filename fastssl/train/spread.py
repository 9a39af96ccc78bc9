"""How far apart embeddings lie: of a method without negatives, the sign that it has collapsed."""

from torch import Tensor
from torch.nn import functional as F


def spread(embeddings: Tensor) -> Tensor:
    """Standard deviation of unit rows over a batch, times sqrt(D): 1 if they fill the sphere.

    0 if all are equal, a collapse. Chen and He, "Exploring Simple Siamese Representation Learning",
    2021, figure 2, there in units of 1 / sqrt(D).

    Args:
        embeddings: [N, D], rows of any length.

    Returns:
        The mean over the D axes, a scalar without a gradient.
    """
    units = F.normalize(embeddings.detach(), dim=1)
    return units.std(0, correction=0).mean() * embeddings.shape[1] ** 0.5
