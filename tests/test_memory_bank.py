"""The memory bank: first in, first out, and what losses have read stays as it was."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F

import fastssl
from fastssl.memory_bank import parsed_size

K, N, D = 10, 3, 4
WIDE = torch.float64


def keys(n=N, dtype=torch.float32):
    return F.normalize(torch.randn(n, D, dtype=dtype), dim=1)


class Plain:
    """The bank as a list."""

    def __init__(self, rows):
        self.rows = rows.clone()

    def enqueue(self, batch):
        self.rows = torch.cat([self.rows, batch])[-len(self.rows) :]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12, 100])
def test_first_in_first_out(size):
    bank = fastssl.MemoryBank(size, D, normalize=False)
    plain = Plain(bank.rows)
    for n in [3, 3, 1, 0, 5, 3, 3, 3, 40, 3, 3, 100, 2] * 2:
        batch = torch.randn(n, D)
        assert torch.equal(bank(batch), plain.rows)
        plain.enqueue(batch)
        assert torch.equal(bank.rows, plain.rows)
        assert torch.equal(bank(), plain.rows)
    assert bank.size == len(bank) == size


def test_the_bank_is_not_copied_each_step():
    bank = fastssl.MemoryBank(1000, D)
    bank.enqueue(keys(10))
    places = set()
    for _ in range(200):
        bank.enqueue(keys(10))
        places.add(bank.rows.untyped_storage().data_ptr())
        assert bank.rows.untyped_storage().nbytes() <= 1.25 * 4 * 1000 * D
    assert len(places) <= 1 + 200 * 10 / 250


def test_reading_copies_nothing():
    bank = fastssl.MemoryBank(K, D)
    bank.enqueue(keys())
    rows = bank.rows
    assert bank(keys()).data_ptr() == rows.data_ptr()
    assert bank.rows_for(keys()).data_ptr() == bank.rows.data_ptr() != rows.data_ptr()


def test_what_was_read_stays():
    bank = fastssl.MemoryBank(K, D)
    read = []
    for _ in range(30):
        rows = bank(keys())
        read.append((rows, rows.clone()))
    assert all(torch.equal(rows, before) for rows, before in read)


def losses(bank, query, batches):
    return [fastssl.info_nce(query, b, bank(b), temperature=0.2) for b in batches]


def expected(rows, query, batches):
    """The gradient of the sum of losses, each with a bank of its own."""
    total, plain = 0, Plain(rows)
    for b in batches:
        total = total + fastssl.info_nce(query, b, plain.rows.clone(), temperature=0.2)
        plain.enqueue(b)
    return torch.autograd.grad(total, query)[0]


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_several_forward_passes_before_one_backward_pass(count):
    bank = fastssl.MemoryBank(K, D, dtype=WIDE)
    query = torch.randn(N, D, dtype=WIDE, requires_grad=True)
    for _ in range(4):
        rows, batches = bank.rows.clone(), [keys(dtype=WIDE) for _ in range(count)]
        (grad,) = torch.autograd.grad(sum(losses(bank, query, batches)), query)
        torch.testing.assert_close(grad, expected(rows, query, batches))


def test_backward_passes_after_other_steps_and_twice():
    bank = fastssl.MemoryBank(K, D, dtype=WIDE)
    query = torch.randn(N, D, dtype=WIDE, requires_grad=True)
    held = []
    for _ in range(12):
        rows, batch = bank.rows.clone(), [keys(dtype=WIDE)]
        held.append((losses(bank, query, batch)[0], expected(rows, query, batch)))
    for _ in range(2):
        for loss, wanted in reversed(held):
            (grad,) = torch.autograd.grad(loss, query, retain_graph=True)
            torch.testing.assert_close(grad, wanted)


def test_a_loss_of_plain_pytorch_may_read_it():
    bank = fastssl.MemoryBank(K, D)
    query = torch.randn(N, D, requires_grad=True)
    total = 0
    for _ in range(9):
        total = total + torch.einsum("nc,ck->nk", query, bank(keys()).T).square().sum()
    total.backward()
    assert query.grad.isfinite().all()


def test_double_backward_after_enqueueing():
    bank = fastssl.MemoryBank(K, D, dtype=WIDE)
    query = torch.randn(N, D, dtype=WIDE, requires_grad=True)
    key, rows = keys(dtype=WIDE), bank.rows.clone()
    results = []
    for negatives in (bank(key), rows):
        for _ in range(5):
            bank.enqueue(keys(dtype=WIDE))
        loss = fastssl.info_nce(query, key, negatives)
        (first,) = torch.autograd.grad(loss, query, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), query)[0])
    torch.testing.assert_close(*results)


def test_the_dtype_is_that_of_the_batches():
    bank = fastssl.MemoryBank(K, D)
    assert bank.rows.dtype == torch.float32
    batch = keys(dtype=torch.bfloat16)
    assert bank.rows_for(batch).dtype == torch.bfloat16
    assert bank.rows.dtype == torch.float32, "reading changes nothing"
    query = torch.randn(N, D, dtype=torch.bfloat16, requires_grad=True)
    for _ in range(6):
        loss = fastssl.info_nce(query, batch, bank(batch))
        loss.backward()
        assert bank.rows.dtype == loss.dtype == torch.bfloat16
        assert bank.rows_for(keys()).dtype == torch.float32
    kept = fastssl.MemoryBank(K, D, dtype=torch.float32)
    assert kept(batch).dtype == torch.bfloat16
    assert kept.rows.dtype == torch.float32
    assert fastssl.MemoryBank(K, D).bfloat16().rows.dtype == torch.bfloat16


def test_keys_are_normalised():
    bank = fastssl.MemoryBank(K, D)
    bank.enqueue(7 * keys(K))
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(K))
    bank.enqueue(torch.zeros(1, D))
    assert bank.rows[-1].tolist() == [0] * D


def test_keys_get_no_gradient_and_may_change_later():
    bank = fastssl.MemoryBank(K, D, normalize=False)
    batch = torch.randn(N, D, requires_grad=True)
    bank.enqueue(batch)
    before = bank.rows.clone()
    with torch.no_grad():
        batch.zero_()
    assert torch.equal(bank.rows, before)
    assert not bank.rows.requires_grad


def test_inference_mode():
    bank = fastssl.MemoryBank(K)
    query = torch.randn(N, D, requires_grad=True)
    with torch.inference_mode():
        bank.enqueue(keys())
        made_there = keys()
    bank.enqueue(made_there)
    fastssl.info_nce(query, keys(), bank.rows).backward()


def test_the_first_batch_gives_the_width():
    bank = fastssl.MemoryBank(K)
    assert "dim=None" in repr(bank)
    batch = keys(dtype=WIDE)
    assert bank(batch).shape == (K, D)
    assert bank.rows.dtype == WIDE
    torch.testing.assert_close(bank.rows[-N:], F.normalize(batch, dim=1))
    assert repr(bank) == f"MemoryBank(size={K}, dim={D})"


def test_what_it_starts_with():
    first, second = (
        fastssl.MemoryBank(K, D, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first.rows, second.rows)
    torch.testing.assert_close(first.rows.norm(dim=1), torch.ones(K))
    assert not torch.equal(first.rows, fastssl.MemoryBank(K, D).rows)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_copies_go_on_by_themselves(way):
    bank = fastssl.MemoryBank(K, D)
    for _ in range(5):
        bank.enqueue(keys())
    if way == "deepcopy":
        twin = copy.deepcopy(bank)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(bank))
    else:
        file = io.BytesIO()
        torch.save(bank, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    plain, other = Plain(bank.rows), Plain(bank.rows)
    for _ in range(8):
        a, b = keys(), keys()
        bank.enqueue(a), plain.enqueue(a), twin.enqueue(b), other.enqueue(b)
        torch.testing.assert_close(bank.rows, plain.rows)
        torch.testing.assert_close(twin.rows, other.rows)


def test_state():
    bank = fastssl.MemoryBank(K, D)
    bank.enqueue(keys())
    state = bank.state_dict()
    before = {name: x.clone() for name, x in state.items()}
    assert list(state) == ["rows"]
    for _ in range(9):
        bank.enqueue(keys())
    assert torch.equal(state["rows"], before["rows"]), "a state is of its moment"
    query = torch.randn(N, D, requires_grad=True)
    loss = fastssl.info_nce(query, keys(), bank.rows)
    for other in (bank, fastssl.MemoryBank(K, D), fastssl.MemoryBank(K)):
        other.load_state_dict(state)
        assert torch.equal(other.rows, state["rows"])
        other.enqueue(keys())
        assert torch.equal(other.rows[: K - N], state["rows"][N:])
    loss.backward()
    with pytest.raises(RuntimeError, match="size mismatch"):
        fastssl.MemoryBank(K + 1, D).load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        bank.load_state_dict({})
    assert not fastssl.MemoryBank(K, D, persistent=False).state_dict()


def test_moved_between_steps():
    bank = fastssl.MemoryBank(K, D)
    bank.enqueue(keys())
    plain = Plain(bank.rows.double())
    bank.double()
    for _ in range(7):
        batch = keys(dtype=WIDE)
        bank.enqueue(batch), plain.enqueue(batch)
        torch.testing.assert_close(bank.rows, plain.rows)


def test_rows_given_by_hand_are_not_written_to():
    bank = fastssl.MemoryBank(K, D, normalize=False)
    given = torch.randn(3 * K, D)
    before = given.clone()
    bank.enqueue(keys())
    bank.rows = given[:K]
    batch = keys()
    bank.enqueue(batch)
    assert torch.equal(given, before)
    assert torch.equal(bank.rows, torch.cat([given[N:K], batch]))


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "aot_eager_decomp_partition"])
def test_compiled(backend):
    bank = fastssl.MemoryBank(K, D)
    plain, query = Plain(bank.rows), torch.randn(N, D, requires_grad=True)
    compiled = torch.compile(
        lambda q, b: fastssl.info_nce(q, b, bank(b)), fullgraph=True, backend=backend
    )
    for _ in range(5):
        batch = keys()
        (grad,) = torch.autograd.grad(compiled(query, batch), query)
        wanted = torch.autograd.grad(fastssl.info_nce(query, batch, plain.rows.clone()), query)
        torch.testing.assert_close(grad, *wanted)
        plain.enqueue(batch)
        torch.testing.assert_close(bank.rows, plain.rows)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fastssl.MemoryBank(0, D), ValueError, "size: got 0"),
        (lambda: fastssl.MemoryBank(2.5, D), TypeError, "size: got 2.5"),
        (lambda: fastssl.MemoryBank(K, 0), ValueError, "dim: got 0"),
        (lambda: fastssl.MemoryBank(K, D, dtype=torch.int64), TypeError, "dtype: got torch.int64"),
        (lambda: fastssl.MemoryBank(K, D, normalize=1), TypeError, "normalize: got 1"),
        (lambda: fastssl.MemoryBank(K, D)(torch.randn(N, D + 1)), ValueError, r"keys: got shape"),
        (lambda: fastssl.MemoryBank(K, D)(torch.randn(D)), ValueError, r"keys: got shape"),
        (lambda: fastssl.MemoryBank(K, D)(torch.ones(N, D).int()), TypeError, "keys: got dtype"),
        (lambda: fastssl.MemoryBank(K, D).enqueue(None), TypeError, "keys: got NoneType"),
        (lambda: parsed_size((1, 2, 3)), ValueError, "Illegal memory bank size"),
        (lambda: parsed_size(-1), ValueError, "all entries must be non-negative"),
    ],
)
def test_errors_name_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()
