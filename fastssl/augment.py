"""Augmentation as modules: `Augment`, and the recipes that methods were published with.

aug = fastssl.augment.SimCLR(size=224)
v0, v1 = aug(images)  # uint8 [B, 3, H, W] or [B, H, W, 3], or a list of images of different sizes

The functions in fastssl.ops.augment do the work.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastssl._dispatch import check_impl
from fastssl._random import checked_seed
from fastssl.ops import augment as _ops
from fastssl.ops.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentParams,
    PackedImages,
    Recipe,
    apply,
    apply_geometry,
    draw,
    pack,
)
from fastssl.ops.augment.images import batch as _batch
from fastssl.ops.augment.picture import show
from fastssl.ops.augment.settings import Settings, normalization, outputs

__all__ = [
    "BYOL",
    "DINO",
    "MAE",
    "Augment",
    "AugmentParams",
    "DINOv2",
    "MoCoV1",
    "MoCoV2",
    "MoCoV3",
    "PackedImages",
    "Recipe",
    "SimCLR",
    "SimSiam",
    "SwAV",
    "VICReg",
    "Weak",
    "apply",
    "apply_geometry",
    "draw",
    "pack",
    "show",
]


class Augment(nn.Module):
    """All views of a batch in one call, one per recipe.

    Views are a function of (seed, step, sample id, view). Without `step` in the call the module
    counts its calls; without `sample_ids` an image's id is its place in the batch, so that equal
    images at equal places get other views in each call. In DataLoader workers, each of which counts
    for itself, pass both. The count, modulo 2^32, and the seed are in `state_dict()`. To count
    inside a CUDA graph, move the module to the images' device.

    Args:
        recipes: one `Recipe` per view.
        seed: in [0, 2^63).
        mean: one number per channel, in units of [0, 1]; None for 0. By default ImageNet's.
        std: one number per channel; None for 1.
        dtype: of the views: float32, bfloat16 or float16, or uint8 for levels, not normalised.
        memory_format: of the views, torch.contiguous_format or torch.channels_last.
        semantics: "tv-uint8", "tv-float" or "pil"; see `apply`.
        impl: "auto", or one of "reference", "cpu", "cuda" by name.

    Attributes:
        provenance: where a preset's parameters come from, and in which variant.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a value that is not allowed.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        *,
        seed: int = 0,
        mean: Sequence[float] | None = IMAGENET_MEAN,
        std: Sequence[float] | None = IMAGENET_STD,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        semantics: str = "tv-uint8",
        impl: str = "auto",
    ):
        super().__init__()
        _ops.checked_recipes(recipes)
        self.recipes = tuple(recipes)
        self.seed = checked_seed(seed)
        self.mean, self.std, self.dtype = mean, std, dtype
        self.memory_format, self.semantics, self.impl = memory_format, semantics, impl
        self.name, self.provenance = type(self).__name__, ""
        self._numbers = [number for recipe in recipes for number in recipe.numbers()]
        names = ("size", "interpolation", "antialias", "gray_first", "blur_kernel")
        per_view = [[getattr(r, n) for r in recipes] for n in (*names, "solarize_threshold")]
        self._settings = Settings.of(semantics, len(recipes), *per_view)
        for name, value in (("mean", mean), ("std", std)):
            if isinstance(value, (tuple, list)) and len(value) not in (1, 3):
                raise ValueError(f"{name}: got {len(value)} numbers, must be one per channel")
        lengths = [len(x) for x in (mean, std) if isinstance(x, (tuple, list))]
        normalization(mean, std, lengths[0] if lengths else 3, dtype)
        outputs(None, [], 0, 0, dtype, memory_format, torch.empty(0))
        check_impl("augment", impl)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        x,
        *,
        params: AugmentParams | None = None,
        return_params: bool = False,
        sample_ids: Tensor | None = None,
        step: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        out: Sequence[Tensor] | None = None,
    ):
        """The views of these images, on the device where they are.

        Args:
            x: images, uint8 or floating-point in [0, 1]: [B, C, H, W] or [B, H, W, C] of any
                strides, `PackedImages`, or a list of images of different sizes.
            params: parameters to be used instead of drawn ones.
            return_params: whether to return the parameters, too.
            sample_ids: what identifies each image, int64 [B]; None for 0 to B - 1.
            step: in [0, 2^32), or a 0-d int64 tensor on the images' device; None to count calls.
            generator: draw from it in torchvision's order (slow), not by seed and step.
            out: tensors to write the views into.

        Returns:
            A list of views, each [B, C, height, width]; with `return_params`, (views, params).

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a value, shape or device is not acceptable.
            RuntimeError: `impl` cannot run here.
        """
        batch = _batch(x)
        packed = None
        if params is not None and generator is not None:
            raise ValueError("generator: there is nothing to draw where params are given")
        if params is not None:
            if not isinstance(params, AugmentParams):
                raise TypeError(f"params: got {type(params).__name__}, must be AugmentParams")
            params.check(len(self.recipes), batch.size, batch.sides(), batch.images.device)
            packed = params.packed()
        elif generator is not None:
            params = _ops.torchvision_params(self.recipes, x, generator=generator)
            packed = params.packed()
        norm = normalization(self.mean, self.std, batch.channels, self.dtype)
        like = (self.dtype, self.memory_format, batch.images)
        views = outputs(out, self._settings.sizes, batch.size, batch.channels, *like)
        counted = packed is None and step is None
        if packed is None:
            if counted:
                here = self.calls.device == batch.images.device
                step = self.calls if here else int(self.calls)
            packed = _ops.raw_draw(batch, self._numbers, self.seed, step, sample_ids, self.impl)
        _ops.raw_apply(batch, packed, self._settings, norm, views, self.impl)
        if counted:  # last: there may be no memory for the views
            self.calls.add_(1)
        if not return_params:
            return views
        return views, AugmentParams.unpack(*packed) if params is None else params

    def get_extra_state(self) -> dict:
        """The seed, which no tensor holds: reading it would wait for the device."""
        return {"seed": self.seed}

    def set_extra_state(self, state: dict) -> None:
        """What `load_state_dict` calls."""
        self.seed = checked_seed(state["seed"])

    def extra_repr(self) -> str:
        """The recipes, equal neighbours once, and the arguments."""
        lines, i = [], 0
        while i < len(self.recipes):
            n = 1
            while self.recipes[i : i + n + 1] == (self.recipes[i],) * (n + 1):
                n += 1
            lines.append(f"{n} x {self.recipes[i]}")
            i += n
        lines.append(f"seed={self.seed}, semantics={self.semantics!r}, dtype={self.dtype}")
        return "\n".join(lines)

    def _get_name(self) -> str:
        return self.name


def _preset(name: str, provenance: str, recipes: Sequence[Recipe], options: dict) -> Augment:
    augment = Augment(recipes, **options)
    augment.name, augment.provenance = name, provenance
    return augment


def _jitter(brightness: float, contrast: float, saturation: float, hue: float, p: float = 0.8):
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    return {"jitter": p, **strengths, "hue": hue}


_STRONG = _jitter(0.8, 0.8, 0.8, 0.2)
_MILD = _jitter(0.4, 0.4, 0.4, 0.1)
_BYOL = _jitter(0.4, 0.4, 0.2, 0.1)


def SimCLR(size=224, strength: float = 1.0, blur: bool = True, **options) -> Augment:
    """Two views; Chen et al., 2020. On CIFAR the paper has strength=0.5 and blur=False."""
    jitter = _jitter(*(x * strength for x in (0.8, 0.8, 0.8, 0.2)))
    recipe = Recipe(size, **jitter, gray=0.2, blur=0.5 if blur else 0.0)
    source = (
        "lightly SimCLRTransform: bilinear, antialiased, ImageNet's mean and std. The authors' "
        "TensorFlow code (google-research/simclr) differs: bicubic without antialiasing, no mean "
        "and std, contrast around each channel's mean, saturation in HSV, one sigma for a batch."
    )
    return _preset("SimCLR", source, [recipe] * 2, options)


def MoCoV1(size=224, **options) -> Augment:
    """Two views; He et al., 2019: gray comes before the jitter, which is always applied."""
    recipe = Recipe(size, (0.2, 1.0), **_jitter(0.4, 0.4, 0.4, 0.4, 1.0), gray=0.2, gray_first=True)
    source = "facebookresearch/moco main_moco.py, without --aug-plus"
    return _preset("MoCoV1", source, [recipe] * 2, options)


def MoCoV2(size=224, **options) -> Augment:
    """Two views; Chen et al., "Improved baselines with momentum contrastive learning", 2020."""
    recipe = Recipe(size, (0.2, 1.0), **_MILD, gray=0.2, blur=0.5)
    source = "facebookresearch/moco main_moco.py, --aug-plus"
    return _preset("MoCoV2", source, [recipe] * 2, options)


def MoCoV3(size=224, min_scale: float = 0.08, **options) -> Augment:
    """Two different views; Chen, Xie, He, 2021. `min_scale` is its --crop-min."""
    recipe = Recipe(size, (min_scale, 1.0), **_BYOL, gray=0.2, blur=1.0)
    source = "facebookresearch/moco-v3 main_moco.py; --crop-min 0.08 is its default"
    views = [recipe, replace(recipe, blur=0.1, solarize=0.2)]
    return _preset("MoCoV3", source, views, options)


def BYOL(size=224, **options) -> Augment:
    """Two different views; Grill et al., 2020, appendix B."""
    recipe = Recipe(size, **_BYOL, gray=0.2, blur=1.0)
    source = "lightly BYOLTransform (solo-learn's asymmetric.yaml agrees, but for bicubic there)"
    return _preset("BYOL", source, [recipe, replace(recipe, blur=0.1, solarize=0.2)], options)


def SimSiam(size=224, **options) -> Augment:
    """Two views, those of MoCo v2; Chen, He, 2020."""
    recipe = Recipe(size, (0.2, 1.0), **_MILD, gray=0.2, blur=0.5)
    source = "lightly SimSiamTransform (facebookresearch/simsiam main_simsiam.py agrees)"
    return _preset("SimSiam", source, [recipe] * 2, options)


def VICReg(size=224, **options) -> Augment:
    """Two views; Bardes et al., 2021."""
    recipe = Recipe(size, **_BYOL, gray=0.2, blur=0.5, solarize=0.1)
    source = "lightly VICRegTransform, sigma from 0.1 as its wrapper has it; blur comes first here"
    return _preset("VICReg", source, [recipe] * 2, options)


def SwAV(size=224, local_size=96, local_views: int = 6, **options) -> Augment:
    """Two large and six small views; Caron et al., 2020."""
    recipe = Recipe(size, (0.14, 1.0), **_STRONG, gray=0.2, blur=0.5)
    small = replace(recipe, size=local_size, scale=(0.05, 0.14))
    source = "lightly SwaVTransform, the paper's 2 x 224 + 6 x 96"
    return _preset("SwAV", source, [recipe] * 2 + [small] * local_views, options)


def _multi_crop(size, local_size, local_views, middle, blurs, kernel=None) -> list[Recipe]:
    first = Recipe(size, (middle, 1.0), interpolation="bicubic", **_BYOL, gray=0.2, blur=blurs[0])
    first = replace(first, blur_kernel=kernel)
    second = replace(first, blur=blurs[1], solarize=0.2)
    local = replace(first, size=local_size, scale=(0.05, middle), blur=blurs[2])
    return [first, second, *[local] * local_views]


def DINO(size=224, local_size=96, local_views: int = 8, **options) -> Augment:
    """Two global and eight local views; Caron et al., 2021."""
    views = _multi_crop(size, local_size, local_views, 0.4, (1.0, 0.1, 0.5))
    source = "facebookresearch/dino main_dino.py, 8 local crops of scale 0.05 to 0.4"
    return _preset("DINO", source, views, options)


def DINOv2(
    size=224, local_size=96, local_views: int = 8, variant: str = "as-trained", **options
) -> Augment:
    """Two global and eight local views; Oquab et al., 2023.

    variant: "as-written" has the blur probabilities that the code states, 1, 0.1 and 0.5;
        "as-trained" those that its GaussianBlur applied, which keeps with that probability: 0, 0.9
        and 0.5.
    """
    blurs = {"as-written": (1.0, 0.1, 0.5), "as-trained": (0.0, 0.9, 0.5)}
    if variant not in blurs:
        raise ValueError(f"variant: got {variant!r}, must be one of {tuple(blurs)}")
    views = _multi_crop(size, local_size, local_views, 0.32, blurs[variant], kernel=9)
    source = f"facebookresearch/dinov2 dinov2/data/augmentations.py, blur {variant}: {{}}"
    return _preset("DINOv2", source.format(blurs[variant]), views, options)


def MAE(size=224, **options) -> Augment:
    """One view, a crop and a flip; He et al., 2021."""
    recipe = Recipe(size, (0.2, 1.0), interpolation="bicubic")
    return _preset("MAE", "facebookresearch/mae main_pretrain.py", [recipe], options)


def Weak(size=224, views: int = 1, **options) -> Augment:
    """Crop and flip, as classifiers are trained."""
    source = "torchvision's RandomResizedCrop and RandomHorizontalFlip with their defaults"
    return _preset("Weak", source, [Recipe(size)] * views, options)
