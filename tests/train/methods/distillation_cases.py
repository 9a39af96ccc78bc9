"""Methods on a few images of noise, in float64."""

import torch
from torch import nn

from fastssl.train.data import Data, Split
from fastssl.train.methods import find

#: Small heads for each method.
HEADS = {
    "moco": {"hidden": 8, "dim": 6},
    "byol": {"hidden": 8, "dim": 6},
    "simsiam": {"dim": 8, "bottleneck": 4},
    "dino": {"hidden": 8, "bottleneck": 6, "outputs": 10, "local_crops": 2},
    "supervised": {},
}
IMAGES = 6


def build(name, image=(16, 24), labels=(0, 1, 2, 0, 1, 2), **keywords):
    """A method in training mode and its views of six images at step 3."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, *image), dtype=torch.uint8)
    split = Split(images, torch.tensor(labels))
    method = find(name)
    config = method.Config(**{"width": 4, "batch_size": 2} | HEADS[name] | keywords)
    model = method(config, Data("noise", ("a", "b", "c"), split, split)).double()
    views = model.views(images, torch.arange(IMAGES), 3)
    return model, [view.double() if view.is_floating_point() else view for view in views]


def disturb(student: nn.Module) -> None:
    """Moves all parameters, so that a teacher is no longer what its student is."""
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def gradients(model, loss):
    """The gradient of each trained parameter by its name."""
    names, parameters = zip(
        *[(n, p) for n, p in model.named_parameters() if p.requires_grad], strict=True
    )
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
