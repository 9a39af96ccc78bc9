"""What holds for all drop-ins: they need none of the libraries, and compile."""

import pkgutil
import subprocess
import sys

import pytest
import torch

from fastssl import compat
from fastssl.compat import mae
from fastssl.compat._draw import keyed
from fastssl.compat.lightly.utils import random_token_mask
from fastssl.compat.timm import PatchDropout

MODULES = [m.name for m in pkgutil.walk_packages(compat.__path__, "fastssl.compat.")]
#: Their classes are subclasses of the library's, which they import.
SUBCLASSING = {
    f"fastssl.compat.{name}" for name in ("pytorch_metric_learning", "sentence_transformers")
}


def test_none_of_the_libraries_is_imported():
    code = (
        "import sys\n"
        "for name in ('transformers', 'timm', 'lightly', 'torchvision', 'open_clip'):\n"
        "    sys.modules[name] = None\n"
        f"import {', '.join(name for name in MODULES if name not in SUBCLASSING)}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_modules_are_listed():
    for name in MODULES:
        if not any(part.startswith("_") for part in name.split(".")):
            assert name.removesuffix(".random_masks") in compat.__doc__, name


@pytest.mark.parametrize(
    "draw",
    [
        lambda: mae.random_masking(torch.arange(32.0).view(2, 16, 1), 0.75)[2],
        lambda: random_token_mask((2, 17))[1],
        lambda: PatchDropout()(torch.arange(34.0).view(2, 17, 1)),
    ],
    ids=["mae", "lightly", "timm"],
)
def test_compiled_draws_follow_torchs_seed(draw):
    compiled = torch.compile(draw, backend="aot_eager", fullgraph=True)
    torch.manual_seed(1)
    first, second = compiled(), compiled()
    torch.manual_seed(1)
    assert torch.equal(draw(), first)
    assert torch.equal(draw(), second)
    assert not torch.equal(first, second), "the mask became a constant"


def test_samples_of_a_batch_are_numbered_from_a_drawn_number():
    torch.manual_seed(1)
    drawn = keyed(4)
    torch.manual_seed(1)
    assert torch.equal(keyed(6)["sample_ids"][:4], drawn["sample_ids"])
    assert drawn["sample_ids"].diff().tolist() == [1, 1, 1]
    assert keyed(4, seed=7) == {"seed": 7, "device": None}
    with pytest.raises(ValueError, match="seed: got -1"):
        keyed(4, seed=-1)
