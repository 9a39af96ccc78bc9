"""Images and parameters for the augmentation's tests, and oracles: torchvision and Pillow."""

import itertools

import numpy as np
import pytest
import torch

from fastssl.ops.augment import AugmentParams, apply

ORDERS = list(itertools.permutations(range(4)))
NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "sigma": 1.0}


@pytest.fixture(autouse=True)
def one_thread():
    """For small views on a busy machine, PyTorch's threads cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise(batch, height, width, channels=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, channels, height, width), generator=g, dtype=torch.uint8)


def photo(batch, height, width, seed=0):
    """Smooth shapes, edges and some noise, all over the range of levels."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 7, 7, generator=g)
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    steps = torch.nn.functional.interpolate(coarse.roll(3, 2), (height, width))
    x = 0.7 * x + 0.4 * (steps > 0.6) + 0.05 * torch.randn(x.shape, generator=g)
    return (x.clamp(0, 1) * 255).round().byte()


def flat(height, width):
    """[8, 3, height, width]: black, white, gray, and saturated colours."""
    colors = [(0, 0, 0), (255,) * 3, (128,) * 3, (100,) * 3]
    colors += [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    x = torch.tensor(colors, dtype=torch.uint8)
    return x[:, :, None, None].expand(-1, -1, height, width).contiguous()


def params(views, batch, tall, wide, /, **fields):
    """The whole image, nothing applied; fields are broadcast to [views, B]."""

    def full(value, dtype):
        return torch.as_tensor(value, dtype=dtype).expand(views, batch).contiguous()

    geometry = {"top": 0, "left": 0, "height": tall, "width": wide}
    gates = dict.fromkeys(("flip", "jitter", "gray", "blur", "solarize"), False)
    order = torch.as_tensor(fields.pop("order", (0, 1, 2, 3)), dtype=torch.int8)
    assert not fields.keys() - geometry.keys() - gates.keys() - NEUTRAL.keys()
    return AugmentParams(
        **{name: full(fields.get(name, x), torch.int32) for name, x in geometry.items()},
        **{name: full(fields.get(name, x), torch.bool) for name, x in gates.items()},
        order=order.expand(views, batch, 4).contiguous(),
        **{name: full(fields.get(name, x), torch.float32) for name, x in NEUTRAL.items()},
    )


def row(p, v, b):
    """One view's parameters as Python numbers."""
    return {name: getattr(p, name)[v, b].tolist() for name in p.__dataclass_fields__}


def torchvision_v2():
    """torchvision.transforms.v2, or the test is skipped."""
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # the latter where it was built for another torch
        pytest.skip(f"torchvision does not import: {error}")
    return v2


def torchvision_view(
    image, p, size, interpolation="bilinear", antialias=True, gray_first=False, taps=None
):
    """One view [C, h, w] by torchvision's functions; float images stay float.

    Levels are resized in float32, as torchvision does it wherever there is no AVX2, and on GPUs.
    """
    F = torchvision_v2().functional
    box = (p["top"], p["left"], p["height"], p["width"])
    size = (size, size) if isinstance(size, int) else size
    levels = image.dtype == torch.uint8
    x = F.resized_crop(image.float(), *box, list(size), interpolation, antialias)
    x = x.clamp(0, 255).round().byte() if levels else x
    x = F.horizontal_flip(x) if p["flip"] else x

    def gray(x):
        return F.rgb_to_grayscale(x, x.shape[0]) if p["gray"] else x

    x = gray(x) if gray_first else x
    operations = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for i in p["order"] if p["jitter"] else ():
        name = ("brightness", "contrast", "saturation", "hue")[i]
        if p[name] != NEUTRAL[name]:
            x = operations[i](x, p[name])
    x = x if gray_first else gray(x)
    if p["blur"]:
        x = F.gaussian_blur(x, taps or (min(size) // 10) | 1, p["sigma"])
    return F.solarize(x, 128 if levels else 128 / 255) if p["solarize"] else x


def pillow_view(image, p, size, interpolation="bilinear"):
    """One view [3, h, w] by Pillow alone, as torchvision calls it."""
    pytest.importorskip("PIL")
    from PIL import Image, ImageEnhance, ImageFilter, ImageOps

    def shifted(x, turn):
        h, s, v = (np.asarray(plane) for plane in x.convert("HSV").split())
        h = h + np.int32(turn * 255).astype(np.uint8)  # modulo 256
        planes = [Image.fromarray(plane) for plane in (h, s, v)]
        return Image.merge("HSV", planes).convert("RGB")

    size = (size, size) if isinstance(size, int) else size
    x = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    x = x.crop((p["left"], p["top"], p["left"] + p["width"], p["top"] + p["height"]))
    x = x.resize(size[::-1], getattr(Image.Resampling, interpolation.upper()))
    x = ImageOps.mirror(x) if p["flip"] else x
    operations = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, None)
    for i in p["order"] if p["jitter"] else ():
        name = ("brightness", "contrast", "saturation", "hue")[i]
        if p[name] != NEUTRAL[name]:
            x = operations[i](x).enhance(p[name]) if i < 3 else shifted(x, p["hue"])
    x = x.convert("L").convert("RGB") if p["gray"] else x
    x = x.filter(ImageFilter.GaussianBlur(p["sigma"])) if p["blur"] else x
    x = ImageOps.solarize(x) if p["solarize"] else x
    return torch.from_numpy(np.array(x)).permute(2, 0, 1)


def disagreement(ours, theirs):
    """(the part of all values that differ at all, by more than one level, the largest)."""
    distance = (ours.int() - theirs.int()).abs()
    one, two = ((distance > n).float().mean().item() for n in (0, 1))
    return one, two, distance.max().item()


def agree(ours, theirs, part=1e-3, further=0.0):
    """Levels: at most `part` of them differ at all, and at most `further` by more than one."""
    one, two, most = disagreement(ours, theirs)
    found = f"{one:.2%} differ, {two:.4%} by more than one level, at most by {most}"
    assert ours.shape == theirs.shape
    assert one <= part and two <= further, found


def levels(x, p, size, **settings):
    """The views as uint8, before normalisation."""
    return apply(x, p, size=size, dtype=torch.uint8, **settings)


def unit(x, p, size, **settings):
    """The views as float32 in [0, 1]."""
    return apply(x, p, size=size, mean=None, std=None, **settings)


def drawn_factors(seed):
    """Factors of the four jitter operations, [24] each, as strong as SimCLR's."""
    g = torch.Generator().manual_seed(seed)
    strong = {n: 0.2 + 1.6 * torch.rand(24, generator=g) for n in list(NEUTRAL)[:3]}
    return strong | {"hue": 0.4 * torch.rand(24, generator=g) - 0.2}
