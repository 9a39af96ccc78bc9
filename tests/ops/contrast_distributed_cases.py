"""The losses as the ranks of a process group call them, and as one process calls them."""

import torch

import fastssl
from fastssl.ops.contrast import core
from fastssl.ops.contrast.pairs import LABELLED

#: Global ranks of the groups, and how many samples each of their ranks has.
GROUPS = {
    "world": ([0, 1, 2, 3], [5, 3, 4, 4]),
    "even": ([0, 1, 2, 3], [4, 4, 4, 4]),
    "three": ([0, 2, 3], [1, 6, 3]),
    "two": ([1, 3], [4, 7]),
    "one": ([2], [6]),
}
#: Which dtypes and reductions are tried in them.
KINDS = {
    "world": [("f64", "sum"), ("f64", "mean"), ("f32", "mean")],
    "even": [("f64", "mean")],
    "three": [("f64", "sum"), ("f64", "mean")],
    "two": [("f64", "mean"), ("bf16", "mean")],
    "one": [("f64", "mean")],
}
STRATEGIES = ("gather", "ring")
DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16}
D = 7


def batch(group: str, dtype: str) -> dict[str, torch.Tensor]:
    """Samples of all ranks, rank after rank, and what is learned."""
    n = sum(GROUPS[group][1])
    generator = torch.Generator().manual_seed(n)
    found = {
        name: torch.randn(n, D, generator=generator, dtype=torch.float64).to(DTYPES[dtype])
        for name in ("a", "b")
    }
    found["labels"] = torch.randint(0, 4, (n,), generator=generator)
    for name, value in {"temperature": 0.3, "scale": 3.0, "bias": -1.5}.items():
        found[name] = torch.tensor(value, dtype=torch.float64 if dtype == "f64" else torch.float32)
    return found


def share(whole: dict, group: str, rank: int) -> dict:
    """A rank's rows, as leaves of its own."""
    sizes = GROUPS[group][1]
    start = sum(sizes[:rank])
    return {
        name: leaf(value[start : start + sizes[rank]] if value.dim() else value)
        for name, value in whole.items()
    }


def leaf(value: torch.Tensor) -> torch.Tensor:
    value = value.clone()
    return value.requires_grad_() if value.is_floating_point() else value


def _dclw(s, sizes, **options):
    """Weights are of a rank's own rows: one process gets those of all ranks."""
    if len(sizes) == 1:
        return fastssl.dclw(s["a"], s["b"], s["temperature"], sigma=0.7, **options)
    x, y = (torch.nn.functional.normalize(s[k].detach().double()) for k in "ab")
    similarity = (x * y).sum(1).split(sizes)
    weights = torch.cat([2 - len(q) * torch.softmax(q / 0.7, 0) for q in similarity]).repeat(2)
    return fastssl.dcl(s["a"], s["b"], s["temperature"], weights=weights, **options)


def _references(function):
    def call(s, sizes, **options):
        """Fewer references than features, and not as many on each rank."""
        kept = torch.cat([torch.arange(n) < (n + 1) // 2 for n in sizes])
        return function(
            s["a"], s["labels"], s["temperature"],
            references=s["b"][kept], reference_labels=s["labels"][kept], **options,
        )  # fmt: skip

    return call


def _views(function, **fixed):
    return lambda s, _, **o: function(s["a"], s["b"], s["temperature"], **fixed, **o)


def _labels(function, **fixed):
    return lambda s, _, **o: function(s["a"], s["labels"], s["temperature"], **fixed, **o)


def _info_nce(*negatives, **fixed):
    return lambda s, _, **o: fastssl.info_nce(
        s["a"], s["b"], *(x.to(s["a"].dtype) for x in negatives), temperature=s["temperature"],
        **fixed, **o,
    )  # fmt: skip


#: Losses of (samples of some ranks, how many each of them has, options).
LOSSES = {
    "nt_xent": _views(fastssl.nt_xent),
    "nt_xent_raw": _views(
        lambda a, b, t, **o: fastssl.nt_xent(a / 2, b / 2, t, normalize=False, **o)
    ),
    "nt_xent_labels": lambda s, _, **o: fastssl.nt_xent(
        s["a"], s["b"], s["temperature"], labels=s["labels"], **o
    ),
    "nt_xent_margins": _views(fastssl.nt_xent, false_negative_margin=0.4, hard_negative_margin=0.6),
    "dcl": _views(fastssl.dcl),
    "dclw": _dclw,
    "info_nce": _info_nce(),
    "info_nce_symmetric": _info_nce(symmetric=True),
    "info_nce_labels": lambda s, _, **o: fastssl.info_nce(
        s["a"], s["b"], temperature=s["temperature"], symmetric=True, labels=s["labels"], **o
    ),
    "info_nce_margins": _info_nce(
        symmetric=True, false_negative_margin=0.4, hard_negative_margin=0.6
    ),
    "info_nce_one_margin": _info_nce(hard_negative_margin=0.5),
    "info_nce_queue": _info_nce(torch.linspace(-1, 1, 5 * D).mul(9).sin().view(5, D)),
    "clip": lambda s, _, **o: fastssl.clip_loss(s["a"] / 2, s["b"] / 2, s["scale"], s["bias"], **o),
    "clip_normalized": lambda s, _, **o: fastssl.clip_loss(
        s["a"], s["b"], s["scale"], normalize=True, **o
    ),
    "siglip": lambda s, _, **o: fastssl.siglip_loss(
        s["a"], s["b"], s["scale"], s["bias"], normalize=True, **o
    ),
    "sup_con_out": _labels(fastssl.sup_con),
    "sup_con_in": _labels(fastssl.sup_con, form="in"),
    "sup_con_references": _references(fastssl.sup_con),
    "pair_nt_xent": _labels(fastssl.pair_nt_xent),
    "pair_nt_xent_references": _references(fastssl.pair_nt_xent),
}
WITH_METRICS = ("nt_xent", "info_nce_symmetric", "clip", "sup_con_out")


def gradients(s: dict) -> dict:
    return {name: x.grad for name, x in s.items() if x.is_floating_point() and x.grad is not None}


def run(loss: str, s: dict, sizes: list[int], reduction: str, **options) -> dict:
    """A loss and its gradients."""
    value = LOSSES[loss](s, sizes, reduction=reduction, **options)
    value.backward()
    return {"loss": value.detach(), **gradients(s)}


def one_process(loss: str, group: str, dtype: str, reduction: str) -> dict:
    s = {name: leaf(value) for name, value in batch(group, dtype).items()}
    return run(loss, s, GROUPS[group][1], reduction, impl="reference")


def label_metrics(s: dict, **options) -> torch.Tensor:
    """Statistics with metrics, of labelled rows above a threshold."""
    threshold = torch.full((len(s["a"]),), 0.5, dtype=torch.float64)
    return core.statistics(
        s["a"], scale=2.0, kind=LABELLED, row_labels=s["labels"], metrics=True,
        threshold=threshold, **options,
    ).rows.detach()  # fmt: skip


def partner_metrics(s: dict, **options) -> torch.Tensor:
    """Statistics with metrics of rows and of columns."""
    found = core.statistics(
        s["a"], s["b"], scale=2.0, columns=True, metrics=True,
        partner=torch.arange(len(s["a"])), **options,
    )  # fmt: skip
    return torch.cat([found.rows, found.columns]).detach()


class Model(torch.nn.Module):
    """Two views' projections, and a temperature that is learned."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layer = torch.nn.Linear(D, 5, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(5, D, generator=generator))
        self.temperature = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, a, b):
        return self.layer(a), self.layer(b), self.temperature * 1


def train(model, s: dict, **options) -> dict:
    """Parameters after ten steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(10):
        optimizer.zero_grad()
        z0, z1, temperature = model(s["a"].detach(), s["b"].detach())
        loss = fastssl.nt_xent(z0, z1, temperature, **options)
        loss.backward()
        optimizer.step()
    return {k.removeprefix("module."): p.detach() for k, p in model.named_parameters()}
