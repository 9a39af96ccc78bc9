"""What calls cost the host of a GPU: pinned, and that nothing of it waits."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import host_work
from fastssl import masking

pytest.importorskip("triton")

PINNED = Path(host_work.__file__).parent / "results" / "host_work.json"
UPDATE = "python -m benchmarks.host_work --json benchmarks/results/host_work.json"


@pytest.fixture(scope="module")
def pinned():
    return json.loads(PINNED.read_text())


def compared(found, expected, same_torch):
    """Launches of our kernels and allocations are ours; ATen's are its version's."""
    columns = ["kernels", "waits"] + same_torch * ["small", "allocations", "views"]
    for name, of in expected.items():
        for key, work in of.items():
            for column in columns:
                assert found[name][key][column] == work[column], f"{name}, {key}: see {UPDATE}"
    assert found.keys() == expected.keys()


@pytest.mark.parametrize("rows", host_work.SIZES)
def test_calls_cost_what_is_pinned_and_do_not_wait(pinned, rows):
    found = host_work.as_json(host_work.traced(rows))
    compared(found, pinned["calls"][str(rows)], pinned["torch"] == torch.__version__.split("+")[0])
    assert not any(work["waits"] for of in found.values() for work in of.values())


@pytest.mark.parametrize("encoder", ["small", "resnet18"])
def test_a_replayed_step_is_a_handful_of_launches(pinned, encoder):
    pytest.importorskip("fastssl.train")
    found = host_work.as_json({encoder: host_work.step(encoder)})
    expected = {encoder: pinned["steps"][encoder]}
    compared(found, expected, pinned["torch"] == torch.__version__.split("+")[0])
    eager, replayed = (found[encoder][how] for how in ("eager", "replayed"))
    assert eager["waits"] == replayed["waits"] == 0
    assert replayed["launches"] <= 8 < 100 < eager["launches"]
    assert replayed["kernels"] == {"graph": 1}


def test_what_waits_is_seen():
    with host_work.pretended_gpu() as trace, trace:
        x = torch.zeros(4, device="meta")
        with pytest.raises(RuntimeError, match="meta"):
            x.sum().item()
        assert trace.work.small == {"zeros": 1, "sum": 1} and not trace.work.waits
        x + torch.ones((), dtype=torch.float64)  # a number
        assert not trace.work.waits
        torch.ones(4).to("meta")
        torch.ones(()).to("meta")
        x[0].copy_(torch.ones(()))
        assert trace.work.waits == {"_to_copy": 2, "copy_": 1}


def test_the_pretence_ends():
    with pytest.raises(ZeroDivisionError), host_work.pretended_gpu():
        raise ZeroDivisionError
    assert not any("meta" in family for family in host_work._dispatch._operators.values())


#: Registered, but on no table of what a GPU launches.
EXCEPTIONS = {
    "contrast_queue": "contrast_forward serves a GPU: fastssl calls this one on the CPU alone",
}


def test_every_raw_operator_is_counted_or_excused():
    registered = {
        name.removeprefix("fastssl::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastssl::")
    }
    # Those of a team run a block's steps on the CPU, in tests.
    registered = {name for name in registered if "_team" not in name}
    counted = {*host_work.NATIVE, *host_work.DEFINED, *filter(host_work.launcher, registered)}
    assert registered - counted - EXCEPTIONS.keys() == set()
    assert counted | EXCEPTIONS.keys() <= registered, "of what is no longer there"


def further(device):
    """What `calls` leaves out, and what it launches of ours: name to (function, operator)."""
    n = 8
    ids, step = torch.arange(n, device=device), torch.zeros((), dtype=torch.int64, device=device)
    drawn = {"seed": 1, "step": step, "sample_ids": ids}
    images = torch.zeros(n, 3, 96, 96, dtype=torch.uint8, device=device)
    permutations = torch.arange(9, device=device).repeat(4, 1)
    words = torch.zeros(n, 32, dtype=torch.int64, device=device)
    of = partial(masking.multiblock_masks, n, (14, 14), seed=1, sample_ids=ids)
    return {
        "block_masks": (partial(masking.block_masks, n, (14, 14), 0.4, **drawn), "patch_blocks"),
        "inverse_block_masks": (
            partial(masking.inverse_block_masks, n, (14, 14), **drawn), "patch_inverse_block"
        ),
        "multiblock_masks": (of, "patch_multiblock"),
        "mask_tokens": (
            partial(masking.mask_tokens, words, None, 3, 100, **drawn), "patch_mask_tokens"
        ),
        "jigsaw": (
            partial(masking.jigsaw, images, permutations=permutations, **drawn), "patch_tiles"
        ),
        "relative_patches": (
            partial(masking.relative_patches, images, 16, 8, 2, **drawn), "patch_tiles"
        ),
    }  # fmt: skip


def further_work(name):
    function, operator = further("meta")[name]
    with host_work.pretended_gpu() as trace, trace:
        function()
    return trace.work, operator


FURTHER = tuple(further("cpu"))


@pytest.mark.parametrize("name", FURTHER)
def test_plans_words_and_tiles_are_a_launch_and_do_not_wait(name):
    work, operator = further_work(name)
    assert work.kernels == {operator: 1} and not work.waits
    # Words of pretext tasks have no kernel of their own.
    assert ("__xor__" in work.small) == (operator == "patch_tiles")


def launched(function):
    """The result, and the names of the kernels on the device; a wait is an error."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        torch.cuda.set_sync_debug_mode("error")
        try:
            made = function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    return made, [event.name for event in profiled.events() if event.device_time > 0]


@pytest.mark.cuda
@pytest.mark.parametrize("name", json.loads(PINNED.read_text())["calls"]["512"])
def test_on_a_card_as_many_launches_and_no_wait(name):
    expected = host_work.traced(512)[name]
    call = host_work.calls(512, "cuda")[name]
    result = call.function()
    if call.leaves:
        upstream = torch.ones_like(result)
        torch.autograd.grad(result, call.leaves, upstream)
    for key, work in expected.items():
        if key == "forward":
            result, names = launched(call.function)
        else:
            _, names = launched(partial(torch.autograd.grad, result, call.leaves, upstream))
        assert len(own(names, work)) == work.kernels.total(), (key, names)


def own(names, work):
    triton = set(work.kernels) - set(host_work.NATIVE)
    return [name for name in names if "fastssl" in name or name in triton]


@pytest.mark.cuda
@pytest.mark.parametrize("name", FURTHER)
def test_on_a_card_plans_words_and_tiles_are_a_launch_too(name):
    function, _ = further("cuda")[name]
    function()
    work, _ = further_work(name)
    _, names = launched(function)
    assert len(own(names, work)) == work.kernels.total(), names
