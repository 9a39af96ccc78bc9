"""What holds for every operator on a card, asked on the CPU: see any_op.py."""

import pytest
import torch
from any_op import CASES, RUNS, close, layouts, run_id, same, unchanged
from any_op_far import FAR

import fastssl
from fastssl import _library, augment


@pytest.mark.parametrize("case, dtype", RUNS, ids=run_id)
def test_layouts(case, dtype):
    tensors = case.inputs("cpu", dtype)
    expected = case.run(tensors)
    for other in layouts(case, tensors):
        close(case.run(other), expected)


@pytest.mark.parametrize("case", CASES, ids=run_id)
def test_same_bits(case):
    first = case.run(case.inputs("cpu"))
    for _ in range(2):
        assert same(case.run(case.inputs("cpu")), first)
    assert not same(case.run(case.inputs("cpu", seed=1)), first), "inputs make no difference"


@pytest.mark.parametrize("case", CASES, ids=run_id)
def test_inputs_are_left_alone(case):
    tensors = case.inputs("cpu")
    kept = {name: x.clone() for name, x in tensors.items()}
    case.run(tensors)
    assert unchanged(tensors, kept)


@pytest.mark.parametrize("far", FAR, ids=run_id)
def test_the_cases_of_far_rows(far):
    """With few rows: what is said of the last ones is right."""
    found, expected = far.run("cpu", far.few)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, torch.as_tensor(b), rtol=2e-2, atol=2e-2)


def test_a_native_operator_that_has_no_memory_says_so():
    """On a GPU by torch's own error; the text is that of torch's stable interface."""
    x = torch.zeros(1, 1, 1024, 1024, dtype=torch.uint8).expand(1 << 16, 1 << 10, -1, -1)
    corners = torch.zeros(1 << 16, 1, 2, dtype=torch.int32)
    with pytest.raises(RuntimeError) as found:
        _library.raw("patch_tiles")(x, corners, 1024, 1024)
    assert _library.lacks_memory(found.value)
    with pytest.raises(RuntimeError) as other:
        _library.raw("patch_tiles")(x, corners.long(), 1024, 1024)
    assert not _library.lacks_memory(other.value)


def test_what_a_gpu_has_no_memory_for_is_torchs_error(monkeypatch):
    def operator(x):
        raise RuntimeError('torch_call_dispatcher( "aten::new_empty", ...) API call failed')

    monkeypatch.setattr(_library, "_on_gpu", lambda x: True)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        _library._telling(operator)(torch.zeros(1))


def no_memory(*_, **__):
    raise torch.OutOfMemoryError("out of memory")


def test_views_that_were_not_made_are_not_counted(monkeypatch):
    aug, x = augment.SimCLR(16), torch.zeros(2, 3, 20, 20, dtype=torch.uint8)
    aug(x)
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(augment._ops, "raw_apply", no_memory)
        aug(x)
    assert int(aug.calls) == 1
    assert same(aug(x), augment.SimCLR(16)(x, step=1))


def test_a_bank_without_memory_for_a_batch_stays_as_it_is(monkeypatch):
    bank = fastssl.MemoryBank(8, 4)
    bank.enqueue(torch.randn(3, 4))
    rows = bank.rows.clone()
    keys = torch.randn(8, 4)
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(torch.Tensor, "new_empty", no_memory)
        for _ in range(3):  # at most every third batch needs new memory
            bank.enqueue(keys)
            rows = bank.rows.clone()
    assert torch.equal(bank.rows, rows)
    bank.enqueue(keys)
    torch.testing.assert_close(bank.rows, torch.nn.functional.normalize(keys, dim=1))
