"""The contrastive losses over several processes against one process that has all rows."""

import os
import subprocess
import sys
import time
from pathlib import Path

import contrast_distributed_cases as cases
import pytest
import torch
from contrast_distributed_cases import GROUPS, KINDS, LOSSES, STRATEGIES, WITH_METRICS, batch, leaf

from fastssl.ops.contrast import merge, reference
from fastssl.ops.contrast.pairs import (
    COUNT,
    LABELLED,
    NEGATIVES,
    PAIRED,
    POSITIVE,
    POSITIVES,
    SIGMOID,
    SOFTMAX,
    Pairs,
)

SCRIPT = Path(__file__).with_name("contrast_distributed_rank.py")
#: Of values and gradients, against their greatest.
ALLOWED = {"f64": 1e-10, "f32": 1e-5, "bf16": 2e-2}
EACH = [pytest.param(g, s, id=f"{g}-{s}") for g in GROUPS for s in STRATEGIES]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of four processes found; all cases run in one start of them."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    logs = [(folder / f"log{rank}").open("w+") for rank in range(4)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(folder)],
            stdout=log, stderr=log, env=environment,
        )
        for rank, log in enumerate(logs)
    ]  # fmt: skip
    end = time.monotonic() + 240
    try:
        for process in ranks:
            process.wait(max(1, end - time.monotonic()))
    finally:
        for process in ranks:
            process.kill()
        for log in logs:
            log.close()
    results = []
    for rank, process in enumerate(ranks):
        log = (folder / f"log{rank}").read_text()
        # The third is killed, the fourth fails: that is what they are for.
        assert process.returncode == (0, 0, -9, 1)[rank], log
        results.append(torch.load(folder / f"rank{rank}.pt"))
    return results


def pairs_of(kind: int, scale: float, labels, **options) -> Pairs:
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (6, 9))
    empty = dict.fromkeys(Pairs._fields)
    if kind in (LABELLED, PAIRED):
        options |= {"row_labels": labels[:6], "column_labels": labels}
    else:
        options["partner"] = torch.tensor([4, 0, -1, 7, 8, 1])
    return Pairs(
        **empty
        | {"x": x, "y": y, "factor": scale, "kind": kind, "normalize_x": True, "normalize_y": True}
        | {"columns": False, "metrics": False}
        | options
    )


def block_of(p: Pairs, start: int, stop: int) -> Pairs:
    partner = p.partner
    if partner is not None:
        here = (partner >= start) & (partner < stop)
        partner = torch.where(here, partner - start, -1)
    labels = None if p.column_labels is None else p.column_labels[start:stop]
    return p._replace(y=p.y[start:stop], partner=partner, column_labels=labels)


BLOCKS = [(0, 2), (2, 3), (3, 9)]


@pytest.mark.parametrize("scale", [0.5, -20.0, 300.0])
@pytest.mark.parametrize("kind", [SOFTMAX, SIGMOID, LABELLED])
def test_blocks_merge_to_the_whole(kind, scale):
    metrics = kind != SIGMOID
    threshold = torch.linspace(-1, 1, 6, dtype=torch.float64) * scale if metrics else None
    labels = torch.tensor([0, 1, 2, 0, 1, 5, 0, 1, 0])
    p = pairs_of(kind, scale, labels, metrics=metrics, threshold=threshold)
    found = None
    for block in BLOCKS:
        found = merge.merged(kind, found, reference.statistics(block_of(p, *block))[0])
    assert_close(found, reference.statistics(p)[0], 1e-12, (kind, scale))


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 5, 0, 1, 0], [0] * 9, list(range(9))])
@pytest.mark.parametrize("scale", [0.5, -20.0, 300.0])
def test_blocks_of_pairs_that_meet_all_negatives_merge_to_the_whole(scale, labels):
    p = pairs_of(PAIRED, scale, torch.tensor(labels))
    blocks = [block_of(p, *block) for block in BLOCKS]
    here = [reference.statistics(block)[0][NEGATIVES] for block in blocks]
    everywhere = torch.stack(here).logsumexp(0)
    found = [
        reference.statistics(merge.with_the_rest(block, everywhere, negatives))[0]
        for block, negatives in zip(blocks, here, strict=True)
    ]
    truth = reference.statistics(p)[0]
    assert_close(everywhere, truth[NEGATIVES], 1e-12, scale)
    for row in (POSITIVE, POSITIVES, COUNT):
        assert_close(sum(one[row] for one in found), truth[row], 1e-12, (scale, row))


def of_group(found, group: str, case) -> list:
    """Each rank's result."""
    results = [found[rank][case] for rank in GROUPS[group][0]]
    assert not any(isinstance(result, str) for result in results), (case, results)
    return results


def assert_close(ours, theirs, allowed, case) -> None:
    ours, theirs = ours.double(), theirs.double()
    assert ours.shape == theirs.shape, case
    assert torch.equal(ours.isinf(), theirs.isinf()), case
    ours, theirs = (x.masked_fill(x.isinf(), 0) for x in (ours, theirs))
    error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)
    assert error <= allowed, f"{case}: off by {error:.3g}"


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("group", "strategy"), EACH)
def test_values_and_gradients_are_those_of_one_process(found, group, strategy, loss):
    world = len(GROUPS[group][0])
    for dtype, reduction in KINDS[group]:
        case = group, loss, strategy, dtype, reduction
        ranks = of_group(found, group, case)
        truth = cases.one_process(loss, group, dtype, reduction)
        # What DistributedDataParallel makes of the ranks' losses and gradients of a mean.
        factor = 1 / world if reduction == "mean" else 1
        assert truth.keys() == ranks[0].keys(), case
        for name, value in truth.items():
            parts = [rank[name].double() * factor for rank in ranks]
            ours = torch.cat(parts) if value.dim() else sum(parts)
            assert_close(ours, value, ALLOWED[dtype], (*case, name))


@pytest.mark.parametrize(("group", "strategy"), EACH)
def test_statistics_with_metrics_are_those_of_one_process(found, group, strategy):
    s = {name: leaf(value) for name, value in batch(group, "f64").items()}
    for case, call in ("labels", cases.label_metrics), ("partners", cases.partner_metrics):
        ranks = of_group(found, group, (group, case, strategy))
        assert_close(torch.cat(ranks, 1), call(s), 1e-10, (group, case, strategy))


@pytest.mark.parametrize("loss", WITH_METRICS)
@pytest.mark.parametrize(("group", "strategy"), EACH)
def test_metrics_are_of_a_rank_s_rows(found, group, strategy, loss):
    s = {name: leaf(value) for name, value in batch(group, "f64").items()}
    sizes = GROUPS[group][1]
    ranks = of_group(found, group, (group, "metrics", loss, strategy))
    _, truth = LOSSES[loss](s, sizes, return_metrics=True)
    assert truth.keys() == ranks[0].keys()
    # Means over rows all have the same weight; how many pairs a labelled row has differs.
    names = ("entropy",) if loss == "sup_con_out" else truth.keys() - {"uniformity"}
    for name in names:
        mean = sum(n * rank[name] for n, rank in zip(sizes, ranks, strict=True)) / sum(sizes)
        assert_close(mean, truth[name], 1e-5, (group, loss, strategy, name))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("loss", ["clip", "siglip", "info_nce"])
def test_gradients_of_some_inputs_are_right_where_others_need_none(found, loss, strategy):
    truth = cases.one_process(loss, "world", "f64", "sum")
    ranks = of_group(found, "world", ("some", loss, strategy))
    sizes = GROUPS["world"][1]
    for rank, (result, start) in enumerate(zip(ranks, [0, 5, 8, 12], strict=True)):
        wanted = {"clip": "ab", "siglip": "ab", "info_nce": "ba"}[loss][rank % 2]
        assert result.keys() == {"loss", wanted}
        rows = truth[wanted][start : start + sizes[rank]]
        assert_close(result[wanted], rows, 1e-10, (loss, strategy, rank))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("group", ["even", "three"])
def test_ten_steps_of_ddp_are_those_of_one_process(found, group, strategy):
    truth = cases.train(cases.Model(), batch(group, "f64"))
    for rank in of_group(found, group, ("ddp", group, strategy)):
        for name, value in truth.items():
            assert_close(rank[name], value, 1e-10, (group, strategy, name))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_compiled_is_the_same(found, strategy):
    for compiled, eager in of_group(found, "two", ("compiled", strategy)):
        for ours, theirs in zip(compiled, eager, strict=True):
            assert_close(ours, theirs, 1e-12, strategy)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("empty", "ValueError: z0: got no rows on ranks [3]"),
        ("empty query", "ValueError: query: got no rows on ranks [3]"),
        ("empty images", "ValueError: image_features: got no rows on ranks [3]"),
        ("empty references", "ValueError: references: got no rows on ranks [3]"),
        ("D", "ValueError: z0: got D = 6, 6, 6, 8 on ranks 0 to 3"),
        ("dtype", "TypeError: z0: got dtype torch.float32, torch.float32, torch.float32, torch.f"),
        ("labels", "ValueError: process_group: got labels given = 0, 0, 0, 1 on ranks 0 to 3"),
        ("strategy", "ValueError: process_group: got strategy = 0, 0, 0, 1"),
        ("temperature", "ValueError: process_group: got temperature or scale"),
        ("no_grad", "ValueError: process_group: got requires_grad of any input = 1, 1, 1, 0"),
        ("second nt_xent", "RuntimeError: process_group: a loss over several ranks has no second"),
        ("second dcl", "RuntimeError: process_group: a loss over several ranks has no second"),
        ("second clip", "RuntimeError: process_group: a loss over several ranks has no second"),
        ("not a group", "TypeError: process_group: got 3"),
    ],
)
def test_an_error_is_raised_on_all_ranks(found, case, message):
    for rank in found:
        assert rank[case].startswith(message)
        assert rank[case, "seconds"] < 10


@pytest.mark.parametrize(
    ("case", "others"), [("raises", [0, 1, 2]), ("is killed", [0, 1]), ("is late", [0, 1])]
)
def test_a_rank_that_fails_stops_the_others(found, case, others):
    for rank in others:
        assert found[rank][case].startswith("RuntimeError")
        assert found[rank][case, "seconds"] < 8  # the group's timeout is 2 seconds
