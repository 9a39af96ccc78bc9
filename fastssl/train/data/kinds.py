"""What data is: samples as integers, in a fixed split, with labels for the evaluation alone."""

import zlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Samples that are numbered from 0, their sample ids.

    Attributes:
        inputs: uint8 images [N, C, H, W], or token ids of texts, int64 [N, L]. A tensor, or for
            images that are read when they are needed an object with a tensor's `shape`, `dtype`,
            `len`, indexing by a slice or by int64 ids [n], which returns a tensor,
            `first(n)`, itself cut to n images, and `fingerprint()`, a number that tells it from
            others: `fastssl.train.data.lazy.LazyImages`.
        labels: classes of the samples, int64 [N]; -1 where a sample has none.
        captions: token ids of a text for each image, int64 [N, L], or None.
    """

    inputs: Tensor
    labels: Tensor
    captions: Tensor | None = None

    def first(self, count: int | None) -> "Split":
        """The first `count` samples, or all of them."""
        if count is None:
            return self
        inputs = (
            self.inputs[:count] if isinstance(self.inputs, Tensor) else self.inputs.first(count)
        )
        captions = None if self.captions is None else self.captions[:count]
        return Split(inputs, self.labels[:count], captions)

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> int:
        """A number that tells the samples from others; images on disk count by their names."""
        tensors = [self.labels] if self.captions is None else [self.labels, self.captions]
        number = 0
        if isinstance(self.inputs, Tensor):
            tensors.append(self.inputs)
        else:
            number = self.inputs.fingerprint()
        for tensor in tensors:
            number = zlib.crc32(tensor.contiguous().numpy().tobytes(), number)
        return number


@dataclass(frozen=True)
class Data:
    """A data set; labels are never shown to a self-supervised method, only to the evaluation.

    Attributes:
        name: what it is called in reports.
        classes: names of the classes; where there are none, labels mean nothing.
        train: samples to train on.
        test: samples to test on.
        vocabulary: the word pieces that token ids count, of texts and captions; the first are those
            of `fastssl.train.data.text.SPECIAL`. Empty without texts.
        left_out: how many files could not be read, and are in neither split.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    vocabulary: tuple[str, ...] = ()
    left_out: int = 0

    @property
    def kind(self) -> str:
        """What a sample is: "images", "texts", or "captions" for images with texts."""
        if self.train.inputs.dtype != torch.uint8:
            return "texts"
        return "images" if self.train.captions is None else "captions"

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return self.train.inputs.shape[1]

    def first(self, count: int | None) -> "Data":
        """The first samples of each split."""
        return replace(self, train=self.train.first(count), test=self.test.first(count))
