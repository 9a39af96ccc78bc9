"""Arguments of the raw operators augment_draw and augment_apply, made at random."""

import itertools

import torch

ORDERS = list(itertools.permutations(range(4)))
SEMANTICS = ("tv-uint8", "tv-float", "pil")


def images(batch, height, width, channels=3, dtype=torch.uint8, seed=0):
    """Shapes and noise over the whole range of levels."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, 5, 5, generator=g)
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    x = (1.2 * x - 0.1 + 0.1 * torch.randn(x.shape, generator=g)).clamp(0, 1)
    return x if dtype == torch.float32 else (x * 255).round().to(dtype)


def settings(
    size, views=1, bicubic=False, antialias=True, gray_first=False, taps=None, threshold=128
):
    """One view's numbers, `views` times; `taps` by default a tenth of the size."""
    taps = (size // 10) | 1 if taps is None else taps
    taps = min(taps, 2 * size - 1)
    return [int(bicubic), int(antialias), int(gray_first), taps, threshold] * views


def drawn(views, sizes, gate=0.6, seed=0, **fields):
    """(geometry, gates, order, factors) of random views of images of these (height, width).

    `fields` fixes a gate, a factor, the order, or the geometry.
    """
    g = torch.Generator().manual_seed(seed)
    batch = len(sizes)
    geometry = torch.zeros(4, views, batch, dtype=torch.int32)
    for v, (b, (height, width)) in itertools.product(range(views), enumerate(sizes)):
        h, w = (int(torch.randint(1, n + 1, (), generator=g)) for n in (height, width))
        top, left = (int(torch.randint(0, n + 1, (), generator=g)) for n in (height - h, width - w))
        geometry[:, v, b] = torch.tensor([top, left, h, w])
    gates = torch.rand(5, views, batch, generator=g) < gate
    order = torch.tensor([ORDERS[i % 24] for i in range(views * batch)], dtype=torch.int8)
    low = torch.tensor([0.2, 0.2, 0.2, -0.5, 0.1])[:, None, None]
    high = torch.tensor([1.8, 1.8, 1.8, 0.5, 2.0])[:, None, None]
    factors = low + (high - low) * torch.rand(5, views, batch, generator=g)
    names = {"flip": 0, "jitter": 1, "gray": 2, "blur": 3, "solarize": 4}
    for name, value in fields.items():
        if name in names:
            gates[names[name]] = value
        elif name == "geometry":
            geometry[:] = torch.tensor(value, dtype=torch.int32)[:, None, None]
        else:
            factors[("brightness", "contrast", "saturation", "hue", "sigma").index(name)] = value
    return geometry, gates, order.reshape(views, batch, 4).contiguous(), factors


def outputs(x, batch, channels, sizes, dtype=torch.uint8, memory_format=torch.contiguous_format):
    """Poisoned tensors, one for each (height, width)."""
    out = []
    for height, width in sizes:
        y = torch.empty(batch, channels, height, width, dtype=dtype, device=x.device).contiguous(
            memory_format=memory_format
        )
        out.append(y.fill_(77))
    return out


def normalization(channels):
    """Mean and std, as the operator takes them."""
    return [0.485, 0.456, 0.406][:channels], [0.229, 0.224, 0.225][:channels]
