"""Handwritten digits, which scikit-learn ships."""

import numpy as np
import torch
from torch.nn import functional as F

from fastssl.train.data.kinds import Data, Split


def digits() -> Data:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8, upsampled to 32 x 32; 360 are held out.

    The part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998,
    that scikit-learn ships. The split is stratified and does not depend on a run's seed.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pictures, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pictures).float().view(-1, 1, 8, 8) * (255 / 16)
    images = F.interpolate(small, size=32, mode="bicubic").clamp(0, 255).round().to(torch.uint8)
    labels = torch.from_numpy(labels).long()
    order = np.arange(len(labels))
    train, test = train_test_split(order, test_size=360, random_state=0, stratify=labels)
    classes = tuple(str(digit) for digit in range(10))
    return Data("digits", classes, *(Split(images[rows], labels[rows]) for rows in (train, test)))
