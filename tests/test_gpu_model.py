"""Every GPU kernel's resources and predicted time, from its machine code: docs/gpu.md explains."""

import os

import pytest

triton = pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET", "0") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

from benchmarks import gpu_model  # noqa: E402
from benchmarks.machine_code import calls, families, passes  # noqa: E402
from benchmarks.machine_code.cards import CARDS  # noqa: E402

MODEL = gpu_model.read()
#: How much longer than checked in a kernel may be predicted to take.
GROWTH = 1.1
#: One card of each architecture: what differs between H100 and H200 is not compiled.
SHOWN = ("A100", "H200")
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async"}
#: What may spill where a call is not `main`: kernels that multiply, and one whose two turns have
#: more addresses than the compiler gives it registers. The file of figures holds how much.
MAY_SPILL = (*passes.MATRIX, "finish_pairs")
CALLS = [call for module in families.CAUGHT.values() for call in module.calls()]


def named(call) -> str:
    return "-".join([call.case, *(str(v) for v in call.size.values())])


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("card", [CARDS[name] for name in SHOWN], ids=lambda card: card.name)
@pytest.mark.parametrize("call", CALLS, ids=named)
def test_triton_kernels_keep_their_resources_and_their_time(call, card):
    for x in call.launched(card):
        compiled = x.compiled(card.architecture)
        kernel = compiled.kernel
        assert kernel.shared <= card.shared_of_program, x.name
        if x.name in passes.MATRIX:
            assert MATRIX_INSTRUCTION[card.architecture] in compiled.binary.asm["ptx"], x.name
        if call.main or x.name not in MAY_SPILL:
            assert kernel.spills == 0, (x.name, compiled.needs)
    if MODEL.get("triton") != triton.__version__:
        pytest.skip("resources were tested; times are of another Triton")
    launches, whole = calls.records(call, card)
    assert_no_slower(launches, recorded("launches", call, card))
    assert_no_slower([whole], recorded("calls", call, card))


def recorded(key, call, card) -> list[dict]:
    wanted = call.family, call.case, call.size, card.name
    return [x for x in MODEL[key] if (x["family"], x["case"], x["size"], x["card"]) == wanted]


def assert_no_slower(found: list[dict], before: list[dict]) -> None:
    assert len(found) == len(before), (
        "launches came or went: python -m benchmarks.gpu_model --update"
    )
    for made, kept in zip(found, before, strict=True):
        assert made.get("kernel") == kept.get("kernel")
        # A tenth of a microsecond is what rounding may hide.
        assert made["predicted_us"] <= GROWTH * kept["predicted_us"] + 0.1, made
        # Arrays live on CUDA threads' stacks, too; calls have none.
        assert made.get("spills", 0) <= kept.get("spills", 0), made


@pytest.mark.skipif(
    MODEL.get("nvcc") != families.nvcc_version(), reason="figures are of another nvcc, or of none"
)
@pytest.mark.parametrize("family", ["augment", "patch"])
def test_cuda_kernels_keep_their_resources_and_their_time(family):
    found = families.predicted(family)
    for key, rows in found.items():
        assert_no_slower(rows, [x for x in MODEL[key] if x["family"] == family])


def test_every_family_is_predicted():
    for key, cards in (("launches", families.LAUNCHES), ("calls", families.SHOWN)):
        there = {(x["family"], x["card"]) for x in MODEL[key]}
        for family in ("nt_xent", "contrast", "augment", "patch"):
            assert {(family, card) for card in cards} <= there


def test_no_prediction_is_below_its_floor():
    for x in [*MODEL["launches"], *MODEL["calls"]]:
        if x["family"] != "known":
            assert x["predicted_us"] >= 0.97 * x["floor_us"], x


def test_the_page_has_the_file_s_tables():
    text = gpu_model.PAGE.read_text()
    assert gpu_model.pages.updated(text, MODEL) == text
