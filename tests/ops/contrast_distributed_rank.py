"""One rank of the tests in test_contrast_distributed.py: a process of its own.

    python contrast_distributed_rank.py RANK FOLDER

It writes FOLDER/rank<RANK>.pt: what it found, by case, or the text of what was raised.
"""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from contrast_distributed_cases import (
    GROUPS,
    KINDS,
    LOSSES,
    STRATEGIES,
    WITH_METRICS,
    Model,
    batch,
    label_metrics,
    partner_metrics,
    run,
    share,
    train,
)

import fastssl

RANK, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
FOUND = {}
TIMEOUT = timedelta(seconds=30)


def attempt(case, call) -> None:
    """Keeps the result, or what was raised."""
    start = time.monotonic()
    try:
        FOUND[case] = call()
    except Exception as error:
        FOUND[case] = f"{type(error).__name__}: {error}"
        FOUND[case, "seconds"] = time.monotonic() - start


def losses(name: str, group) -> None:
    rank = dist.get_rank(group)
    for dtype, reduction in KINDS[name]:
        for loss in LOSSES:
            for strategy in STRATEGIES:
                s = share(batch(name, dtype), name, rank)
                options = {"process_group": group, "strategy": strategy}
                attempt(
                    (name, loss, strategy, dtype, reduction),
                    lambda s=s, n=loss, r=reduction, o=options: run(n, s, [len(s["a"])], r, **o),
                )


def metrics(name: str, group) -> None:
    s = share(batch(name, "f64"), name, dist.get_rank(group))
    for strategy in STRATEGIES:
        options = {"process_group": group, "strategy": strategy}
        attempt((name, "labels", strategy), lambda o=options: label_metrics(s, **o))
        attempt((name, "partners", strategy), lambda o=options: partner_metrics(s, **o))
        for loss in WITH_METRICS:
            attempt(
                (name, "metrics", loss, strategy),
                lambda n=loss, o=options: LOSSES[n](s, [0], return_metrics=True, **o)[1],
            )


def some_gradients(group) -> None:
    """Only some of the inputs require a gradient, not the same on each rank."""
    rank = dist.get_rank(group)
    for loss, kept in {"clip": "ab", "siglip": "ab", "info_nce": "ba"}.items():
        for strategy in STRATEGIES:
            s = share(batch("world", "f64"), "world", rank)
            for name, x in s.items():
                if x.is_floating_point():
                    x.requires_grad_(name == kept[rank % 2])
            o = {"process_group": group, "strategy": strategy}
            attempt(
                ("some", loss, strategy),
                lambda s=s, n=loss, o=o: run(n, s, [len(s["a"])], "sum", **o),
            )


def errors(group) -> None:
    rank = dist.get_rank(group)
    last = rank == dist.get_world_size(group) - 1

    def views(n=4, d=6, dtype=torch.float32, **options):
        z = torch.randn(n, d, dtype=dtype, requires_grad=True)
        return fastssl.nt_xent(z, z.detach() + 1, process_group=group, **options)

    attempt("empty", lambda: views(0 if last else 4))
    attempt("D", lambda: views(d=8 if last else 6))
    attempt("dtype", lambda: views(dtype=torch.float64 if last else torch.float32))
    attempt("labels", lambda: views(labels=torch.arange(4) if last else None))
    attempt("strategy", lambda: views(strategy="ring" if last else "gather"))
    attempt("temperature", lambda: views(temperature=0.5 if last else 0.4))
    with torch.set_grad_enabled(not last):
        attempt("no_grad", views)
    rows = torch.randn(0 if last else 3, 6)
    attempt(
        "empty query", lambda: fastssl.info_nce(rows, rows, torch.ones(2, 6), process_group=group)
    )
    attempt("empty images", lambda: fastssl.clip_loss(rows, rows, 3.0, process_group=group))
    attempt(
        "empty references",
        lambda: fastssl.sup_con(
            torch.randn(3, 6),
            torch.zeros(3, dtype=torch.long),
            references=rows,
            reference_labels=torch.zeros(len(rows), dtype=torch.long),
            process_group=group,
        ),
    )

    def second(function, *arguments, **options):
        x, y = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
        loss = function(x, y, *arguments, process_group=group, **options)
        (g,) = torch.autograd.grad(loss, x, create_graph=True)
        (g.square().sum() + x.square().sum()).backward()

    attempt("second nt_xent", lambda: second(fastssl.nt_xent))
    attempt("second dcl", lambda: second(fastssl.dcl, strategy="ring"))
    attempt("second clip", lambda: second(fastssl.clip_loss, 3.0))
    attempt(
        "not a group", lambda: fastssl.nt_xent(torch.ones(2, 2), torch.ones(2, 2), process_group=3)
    )


def compiled(group) -> None:
    for strategy in STRATEGIES:

        def whole(s, strategy=strategy):
            options = {"process_group": group, "strategy": strategy, "reduction": "sum"}
            a = s["a"] * 2  # something to compile on either side
            loss = fastssl.nt_xent(a, s["b"], s["temperature"], **options)
            return loss + fastssl.clip_loss(a, s["b"], s["scale"], **options) * 2

        def both(function):
            s = share(batch("two", "f64"), "two", dist.get_rank(group))
            loss = function(s)
            loss.backward()
            return [loss.detach(), s["a"].grad, s["temperature"].grad]

        attempt(
            ("compiled", strategy),
            lambda: (both(torch.compile(whole, backend="aot_eager")), both(whole)),
        )


def parallel(name: str, group) -> None:
    rank = dist.get_rank(group)
    for strategy in STRATEGIES:
        model = torch.nn.parallel.DistributedDataParallel(Model(), process_group=group)
        s = share(batch(name, "f64"), name, rank)
        options = {"process_group": group, "strategy": strategy}
        attempt(("ddp", name, strategy), lambda m=model, s=s, o=options: train(m, s, **o))


def fails(group, how: str) -> None:
    """The last rank fails after the forward pass; the others must not wait for it forever."""
    last = dist.get_rank(group) == dist.get_world_size(group) - 1
    x, y = (torch.randn(4, 3, requires_grad=True) for _ in range(2))

    def step():
        for strategy in STRATEGIES:
            loss = fastssl.clip_loss(x, y, 2.0, process_group=group, strategy=strategy)
            if last and how == "raises":
                raise ArithmeticError("this rank fails")
            if last and how == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if last and how == "is late":
                time.sleep(4)
            loss.backward()

    attempt(how, step)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(RANK)
    torch.use_deterministic_algorithms(True)  # `empty` is filled with NaN
    dist.init_process_group(
        "gloo",
        init_method=f"file://{FOLDER}/rendezvous",
        rank=RANK,
        world_size=4,
        timeout=TIMEOUT,
    )
    groups = {name: dist.new_group(ranks, timeout=TIMEOUT) for name, (ranks, _) in GROUPS.items()}
    # A group each, since one that failed is of no use.
    late, raising, dying = (
        dist.new_group(ranks, timeout=timedelta(seconds=2)) for ranks in ([0, 1], None, [0, 1, 2])
    )
    mine = {name: groups[name] for name, (ranks, _) in GROUPS.items() if RANK in ranks}
    for name, group in mine.items():
        losses(name, group)
        metrics(name, group)
    some_gradients(groups["world"])
    errors(groups["world"])
    for name in ("even", "three"):
        if name in mine:
            parallel(name, mine[name])
    if "two" in mine:
        compiled(mine["two"])
    dist.barrier()
    if RANK < 2:
        fails(late, "is late")
    dist.barrier()
    torch.save(FOUND, FOLDER / f"rank{RANK}.pt")  # of the one that is killed, that is all
    fails(raising, "raises")
    torch.save(FOUND, FOLDER / f"rank{RANK}.pt")
    if RANK == 3:
        raise SystemExit("this rank failed")
    fails(dying, "is killed")
    torch.save(FOUND, FOLDER / f"rank{RANK}.pt")
    os._exit(0)  # nobody is left to say goodbye to


if __name__ == "__main__":
    main()
