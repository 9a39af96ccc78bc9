"""What holds for every operator on a card: streams, devices, graphs, layouts, memory, bits.

The operators are those of any_op.py. What only one of them has is tested in its own file.
"""

import contextlib
import os

import pytest
import torch
from any_op import CASES, RUNS, close, layouts, run_id, same, unchanged
from any_op_far import FAR

import fastssl
from fastssl import augment

pytestmark = [pytest.mark.cuda]

if os.environ.get("TRITON_INTERPRET", "0") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

GIB = 2**30
#: Cycles that a stream sleeps: some 5 ms, longer than a call takes to be launched.
SLEEP = 10_000_000
two_cards = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one card")


@contextlib.contextmanager
def side_stream():
    """Another stream, after what is under way and before what follows."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield stream
    torch.cuda.current_stream().wait_stream(stream)


def filled(tensors, values):
    """Copies values into tensors, which keep their addresses."""
    with torch.no_grad():
        for name, x in tensors.items():
            x.copy_(values[name])


@pytest.mark.parametrize("case", CASES, ids=run_id)
def test_runs_on_the_current_stream(case):
    values = case.inputs("cuda")
    expected = case.run(values)
    late = {name: torch.zeros_like(x) for name, x in values.items()}
    with side_stream():
        torch.cuda._sleep(SLEEP)  # what ran on another stream would overtake this
        filled(late, values)
        found = case.run(late)
    assert same(found, expected)


@two_cards
@pytest.mark.parametrize("case", CASES, ids=run_id)
def test_runs_where_its_tensors_are(case):
    expected = [x.cpu() for x in case.run(case.inputs("cuda:0"))]
    for current, there in ((0, 1), (1, 0)):
        with torch.cuda.device(current):
            tensors = case.inputs(f"cuda:{there}")
            found = case.run(tensors)
            assert torch.cuda.current_device() == current
            assert all(x.device.index == there for x in found)
            # And on a stream of the other device.
            with torch.cuda.stream(torch.cuda.Stream(f"cuda:{there}")):
                torch.cuda.synchronize(there)
                again = case.run(tensors)
            torch.cuda.synchronize(there)
        for results in (found, again):
            close([x.cpu() for x in results], expected)


@pytest.mark.parametrize("case", CASES, ids=run_id)
def test_is_captured_and_replayed(case):
    tensors = case.inputs("cuda")
    with side_stream():
        case.run(tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case.run(tensors)
    for seed in (1, 2):
        filled(tensors, case.inputs("cuda", seed=seed))
        graph.replay()
        assert same(captured, case.run(tensors)), f"seed {seed}"


@pytest.mark.parametrize("case, dtype", RUNS, ids=run_id)
def test_layouts(case, dtype):
    tensors = case.inputs("cuda", dtype)
    expected = case.run(tensors)
    for other in layouts(case, tensors):
        close(case.run(other), expected)


@pytest.mark.parametrize("case, dtype", RUNS, ids=run_id)
def test_same_bits_from_call_to_call(case, dtype):
    tensors = case.inputs("cuda", dtype)
    first = case.run(tensors)
    for _ in range(2):
        assert same(case.run(tensors), first)


@pytest.mark.parametrize("case", CASES, ids=run_id)
def test_same_bits_beside_other_work(case):
    tensors = case.inputs("cuda", size=2)
    first = case.run(tensors)
    work = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(40):
            work = (work @ work).clamp(-1, 1)
    assert all(same(case.run(tensors), first) for _ in range(3))
    torch.cuda.current_stream().wait_stream(stream)


def peak_of(function) -> int:
    """Bytes that a call takes at most beside what there was."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@contextlib.contextmanager
def memory_for(extra: int):
    """No memory but so many bytes, some of them in small pieces."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    spare = [taken(extra), *(taken(2**19) for _ in range(16))] if extra else []
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    filling = []
    try:
        for size in (2**24, 2**22, 2**20 + 1, 2**18, 2**15, 2**12, 1):  # what is cached
            with contextlib.suppress(torch.OutOfMemoryError):
                while True:
                    filling.append(taken(size))
        del spare
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        filling.clear()
        torch.cuda.empty_cache()


def taken(size: int):
    return torch.empty(size, dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize("case", CASES, ids=run_id)
def test_without_memory_nothing_is_half_done(case):
    tensors = case.inputs("cuda", size=8)
    kept = {name: x.cpu() for name, x in tensors.items()}
    expected = [x.cpu() for x in case.run(tensors)]
    peak = peak_of(lambda: case.run(tensors))
    failed = []
    for share in (0.0, 0.2, 0.5, 0.8):  # the first allocation fails, or a later one
        with memory_for(int(share * peak)):
            try:
                case.run(tensors)
            except torch.OutOfMemoryError:
                failed.append(share)
        assert unchanged(tensors, kept)
        found = [x.cpu() for x in case.run(tensors)]
        assert same(found, expected), f"after {share}"
    assert 0.0 in failed


def test_without_memory_a_bank_stays_as_it_is():
    bank = fastssl.MemoryBank(2**20, 128).cuda()
    keys = torch.randn(2**18, 128, device="cuda")
    bank.enqueue(keys)
    failed = 0
    for _ in range(6):
        rows = bank.rows
        kept, address = rows.cpu(), rows.data_ptr()
        # Keys are normalised in passing; new memory for all of them there is not.
        with memory_for(keys.nbytes * 4):
            try:
                bank.enqueue(keys)
                continue
            except torch.OutOfMemoryError:
                failed += 1
        assert bank.rows.data_ptr() == address and torch.equal(bank.rows.cpu(), kept)
        bank.enqueue(keys)
        assert torch.equal(bank.rows[: -len(keys)].cpu(), kept[len(keys) :])
    assert failed


def test_without_memory_views_are_not_counted():
    # Views that are too large for shared memory are made in scratch memory.
    aug = augment.SimCLR(512, semantics="tv-float").cuda()
    x = torch.randint(0, 256, (32, 3, 300, 300), dtype=torch.uint8, device="cuda")
    peak = peak_of(lambda: aug(x))
    failed = 0
    for share in (0.0, 0.5, 0.9, 0.97):
        before = int(aug.calls)
        with memory_for(int(share * peak)):
            try:
                aug(x)
            except torch.OutOfMemoryError:
                failed += 1
                assert int(aug.calls) == before
    assert failed
    calls = int(aug.calls)
    assert same(aug(x), augment.SimCLR(512, semantics="tv-float")(x, step=calls))


@pytest.mark.slow
@pytest.mark.parametrize("far", FAR, ids=run_id)
def test_more_than_32_bits_of_elements(far):
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < far.gigabytes * GIB:
        pytest.skip(f"{far.gigabytes} GiB are needed, {free / GIB:.0f} are free")
    found, expected = far.run("cuda", far.count)
    for a, b in zip(found, expected, strict=True):
        b = torch.as_tensor(b, device=a.device)
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
    del found, expected
    torch.cuda.empty_cache()
