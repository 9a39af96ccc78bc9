"""What a loss over a process group costs each rank: the tables of docs/distributed.md.

`python -m benchmarks.distributed_model` prints the model's, `--update` writes them into the page;
`--measure 2` runs two processes over gloo and sets the model beside what they took.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "distributed.md"
#: Assumed, not measured: a device's products in bfloat16, its link, a message's latency.
RATE, LINK, LATENCY = 400e12, 50e9, 20e-6
NUMBER = 8  # bytes of a statistic
ROUNDS = 7


class Cost(NamedTuple):
    """Of one pass, for each rank."""

    flop: float
    received: float  # bytes
    messages: int  # one after the other
    held: float  # bytes of other ranks' rows and statistics, at most


def forward(loss: str, strategy: str, world: int, n: float, d: int, b: int) -> Cost:
    """`n` rows on each rank: of [z0; z1] for "nt_xent", pairs for "clip" and "siglip"."""
    block, rows, others = 2 * n * n * d, n * d * b, world - 1
    if loss == "nt_xent":
        # Itself: a triangle. Of two ranks' rows one rank computes the block; opposite ones, both.
        flop = block * (0.5 + world // 2)
        answers = 4 * NUMBER * n * (others // 2)
        blocks = world // 2 if strategy == "ring" else others
    else:
        flop = block * world
        answers = 4 * NUMBER * n * others if loss == "clip" else 0
        blocks = others
    answered = 1 if answers else 0
    if strategy == "ring":
        messages = 1 + blocks * (1 + answered)
        return Cost(flop, blocks * rows + answers, messages, 2 * min(others, 1) * rows)
    return Cost(flop, blocks * rows + answers, 2 + answered, world * rows)


def backward(loss: str, strategy: str, world: int, n: float, d: int, b: int) -> Cost:
    """The logits again, and a product of their gradient with the other side's rows."""
    block, rows, others = 2 * n * n * d, n * d * b, world - 1
    numbers = 2 * 4 * NUMBER * n
    if loss == "nt_xent":
        if strategy == "ring":
            # Itself: half the logits.
            flop = block * (2 * world - 0.5)
            return Cost(flop, others * (rows + numbers), others, 2 * (rows + numbers))
        return Cost(2 * block * world, others * numbers, 1, world * (rows + numbers))
    trips = 2 if loss == "clip" else 1  # with statistics
    if strategy == "ring":
        received = others * (2 * rows + trips * numbers)
        return Cost(4 * block * world, received, 2 * others, 2 * (rows + numbers))
    received = others * (rows + trips * numbers)
    return Cost(4 * block * world, received, 1 + trips, world * (2 * rows + trips * numbers))


def seconds(cost: Cost, strategy: str, rate: float, link: float, latency: float) -> float:
    """Gathering, then computing; in a ring both at once."""
    compute, travel = cost.flop / rate, cost.received / link
    both = max(compute, travel) if strategy == "ring" else compute + travel
    return both + cost.messages * latency


#: Of one process, in products of all pairs: both sides' gradients share the logits.
ALONE = {"nt_xent": (0.5, 1.5), "clip": (1, 3), "siglip": (1, 3)}
PASSES = {"forward": forward, "backward": backward}


def step(loss: str, strategy: str, *sizes) -> tuple[Cost, float]:
    """Both passes, and the seconds that the assumed device takes."""
    costs = [call(loss, strategy, *sizes) for call in PASSES.values()]
    total = sum(seconds(cost, strategy, RATE, LINK, LATENCY) for cost in costs)
    sums = [sum(values) for values in list(zip(*costs, strict=True))[:3]]
    return Cost(*sums, max(cost.held for cost in costs)), total


def table(loss: str) -> list[str]:
    lines = [
        "| D | ranks | rows, all ranks | TFLOP | received, MB: gather | ring "
        "| held, MB: gather | ring | ms: gather | ring | computing alone |",
        "| ---: " * 11 + "|",
    ]
    for d in (128, 768):
        for world in (8, 64, 256, 1024):
            for rows in (32_768, 524_288, 4_194_304):
                if rows // world < 32:
                    continue
                sizes = world, rows / world, d, 2
                (gather, slow), (ring, fast) = (step(loss, s, *sizes) for s in ("gather", "ring"))
                cells = [f"{d}", f"{world:,}", f"{rows:,}", f"{_short(gather.flop / 1e12)}"]
                cells += [_short(x.received / 1e6) for x in (gather, ring)]
                cells += [_short(x.held / 1e6) for x in (gather, ring)]
                cells += [_short(1e3 * x) for x in (slow, fast, gather.flop / RATE)]
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


class Taken(NamedTuple):
    """Of some rounds, each the least: what other processes of the machine took is no part of it."""

    wall: float
    cpu: float  # of the thread that computes

    def less(self, other: "Taken") -> "Taken":
        """What is left of both."""
        return Taken(self.wall - other.wall, self.cpu - other.cpu)


def _timed(call, barrier, rounds: int) -> Taken:
    found = []
    for _ in range(rounds):
        barrier()
        start = time.perf_counter(), time.thread_time()
        call()
        found.append((time.perf_counter() - start[0], time.thread_time() - start[1]))
    return Taken(*map(min, zip(*found, strict=True)))


def _count_received(counted: list[int]) -> None:
    """Adds the bytes of rows and statistics that come in from other ranks to counted[0]."""
    import torch

    from fastssl.ops.contrast import ranks

    gather, batch, deliver = ranks._all_gather, ranks.dist.batch_isend_irecv, ranks.Ranks.deliver

    def gathered(every, mine, **options):
        if mine.dtype == torch.uint8:  # not what the ranks agree on
            counted[0] += every.nbytes - mine.nbytes
        return gather(every, mine, **options)

    def passed(operations):
        counted[0] += sum(o.tensor.nbytes for o in operations if o.op is ranks.dist.irecv)
        return batch(operations)

    def delivered(self, rows, sizes, senders, n):
        found = deliver(self, rows, sizes, senders, n)
        counted[0] += found.nbytes // len(senders) * (len(senders) - (self.rank in senders))
        return found

    ranks._all_gather, ranks.dist.batch_isend_irecv = gathered, passed
    ranks.Ranks.deliver = delivered


def _loss(loss: str, x, y, **options):
    import fastssl

    if loss == "nt_xent":
        return fastssl.nt_xent(x, y, 0.2, reduction="sum", **options)
    if loss == "clip":
        return fastssl.clip_loss(x, y, 5.0, normalize=True, reduction="sum", **options)
    return fastssl.siglip_loss(x, y, 5.0, -5.0, normalize=True, reduction="sum", **options)


def _rank(rank: int, world: int, folder: Path) -> None:
    """One process of the measurement; writes FOLDER/<rank>.json."""
    import torch
    import torch.distributed as dist

    from benchmarks.measure import assert_parity

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    counted = [0]
    _count_received(counted)
    alone = [dist.new_group([r]) for r in range(world)]

    def passes(loss, x, y, **options):
        def whole():
            x.grad = y.grad = None
            _loss(loss, x, y, **options).backward()

        ahead = _timed(lambda: _loss(loss, x, y, **options), dist.barrier, ROUNDS)
        return ahead, _timed(whole, dist.barrier, ROUNDS).less(ahead)

    small, large = torch.zeros(8), torch.zeros(1 << 21)
    latency, long = (
        _timed(
            lambda x=x: dist.all_gather([torch.empty_like(x) for _ in range(world)], x),
            dist.barrier,
            30,
        ).wall
        for x in (small, large)
    )
    link = large.nbytes * (world - 1) / (long - latency)
    results = []
    for n, d in ((1024, 128), (512, 768)):
        generator = torch.Generator().manual_seed(0)
        for loss in ALONE:
            # As many rows of [z0; z1] as there are pairs.
            pairs = n // 2 if loss == "nt_xent" else n
            cut = slice(rank * pairs, (rank + 1) * pairs)
            everything = [
                torch.randn(pairs * world, d, generator=generator, requires_grad=True)
                for _ in range(2)
            ]
            x, y = (z.detach()[cut].clone().requires_grad_() for z in everything)
            _loss(loss, *everything).backward()
            # The rate of this loss's kernels where nothing travels: one rank, its own rows.
            by_itself = passes(loss, x, y, process_group=alone[rank])
            for strategy in ("gather", "ring"):
                options = {"process_group": dist.group.WORLD, "strategy": strategy}
                x.grad = y.grad = None
                counted[0] = 0
                value = _loss(loss, x, y, **options)
                received = [counted[0]]
                value.backward()
                received.append(counted[0] - received[0])
                truth = [z.grad[cut] for z in everything]
                parity = assert_parity((x.grad, y.grad), truth, torch.float32)
                results.append(
                    {
                        "loss": loss, "strategy": strategy, "n": n, "d": d, "parity": parity,
                        "alone": by_itself, "received": received,
                        "took": passes(loss, x, y, **options),
                    }
                )  # fmt: skip
    found = {"latency": latency, "link": link, "results": results}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def measure(world: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.distributed_model", "--world", str(world)]
        ranks = [
            subprocess.Popen(
                [*command, "--rank", str(rank), "--folder", folder],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(world)
        ]
        if any(process.wait(900) for process in ranks):
            raise SystemExit("a rank failed")
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]
    latency = statistics.mean(x["latency"] for x in found)
    link = statistics.mean(x["link"] for x in found)
    lines = [
        f"{world} processes of one thread on {os.cpu_count()} cores, float32; gloo: "
        f"{latency * 1e6:.0f} us a message, {link / 1e9:.2f} GB/s; load average "
        f"{os.getloadavg()[0]:.1f}.",
        "",
        "| loss | rows a rank | D | strategy | pass | bytes received, counted "
        "| processor, ms: model | measured | clock, ms: model | measured | parity |",
        "| --- | ---: | ---: | --- | --- " + "| ---: " * 6 + "|",
    ]
    for entries in zip(*(x["results"] for x in found), strict=True):
        e = entries[0]
        parity = max(entry["parity"] for entry in entries)
        for k, (name, call) in enumerate(PASSES.items()):
            cost = call(e["loss"], e["strategy"], world, e["n"], e["d"], 4)
            if {entry["received"][k] for entry in entries} != {cost.received}:
                raise AssertionError(f"{name} of {e} receives {e['received'][k]}, not {cost}")
            flop = 2 * e["n"] ** 2 * e["d"] * ALONE[e["loss"]][k]
            by_itself, took = (
                [max(entry[key][k][clock] for entry in entries) for clock in (0, 1)]
                for key in ("alone", "took")
            )
            computing = cost.flop / flop * by_itself[1]
            model = seconds(cost, e["strategy"], flop / by_itself[0], link, latency)
            cells = [e["loss"], f"{e['n']:,}", str(e["d"]), e["strategy"], name]
            cells.append(f"{e['received'][k]:,}")
            cells += [f"{1e3 * x:.1f}" for x in (computing, took[1], model, took[0])]
            lines.append("| " + " | ".join([*cells, f"{parity:.1g}"]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--measure", type=int)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--world", type=int)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.rank is not None:
        _rank(args.rank, args.world, args.folder)
        return
    if args.measure:
        tables = {f"measured_{args.measure}": measure(args.measure)}
    else:
        tables = {f"model_{loss}": table(loss) for loss in ("nt_xent", "clip")}
    for marker, lines in tables.items():
        print("\n".join([marker, "", *lines, ""]))
        if args.update:
            from benchmarks.report import insert

            insert(PAGE, marker, "\n".join(lines))


if __name__ == "__main__":
    main()
