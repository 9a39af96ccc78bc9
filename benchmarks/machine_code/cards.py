"""Published rates and latencies of the cards that the model predicts for.

Nothing here was measured by this project. Each figure has its source in `SOURCES`, by the field's
name; entries of `per_clock` and `latency` have theirs under "per_clock" and "latency" where no
entry of their own says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A card's published figures. "Processor" is a streaming multiprocessor.

    Attributes:
        name: short name, as in the model's tables.
        product: the full name.
        architecture: compute capability times ten.
        processors: multiprocessors that are enabled.
        boost: the highest clock, GHz.
        clock: the clock that kernels without much tensor work are predicted at, GHz.
        tensor_clock: the clock that kernels limited by the tensor cores are predicted at, GHz.
        bandwidth: memory, GB/s by the data sheet.
        copy_share: the share of it that a copy of a large array reaches.
        l2_bytes: size of the L2 cache.
        l2_per_clock: bytes that the whole card reads from L2 in a clock.
        shared_bytes: shared memory of a processor that programs can have.
        shared_of_program: shared memory that one program can have.
        shared_per_clock: bytes that a processor reads from shared memory or L1 in a clock.
        registers: 32-bit registers of a processor.
        warps: resident warps of a processor.
        programs: resident programs (thread blocks) of a processor.
        launch_us: from a launch to the end of an empty kernel, as seen by the host.
        gap_us: between the ends of two dependent empty kernels in a stream that is ahead.
        graph_gap_us: the same between two nodes of a CUDA graph.
        per_clock: results per clock and processor, by kind of operation. "tensor" is in
            floating-point operations (a multiply-add counts as two).
        latency: clocks until a result can be used, by kind of operation.
    """

    name: str
    product: str
    architecture: int
    processors: int
    boost: float
    clock: float
    tensor_clock: float
    bandwidth: float
    copy_share: float
    l2_bytes: int
    l2_per_clock: int
    shared_bytes: int
    shared_of_program: int
    launch_us: float
    gap_us: float
    graph_gap_us: float
    per_clock: Mapping[str, float]
    latency: Mapping[str, float]
    shared_per_clock: int = 128
    registers: int = 65536
    warps: int = 64
    programs: int = 32

    @property
    def copy_rate(self) -> float:
        """Bytes a second that a copy reaches, read and written bytes together."""
        return self.bandwidth * 1e9 * self.copy_share

    @property
    def tensor_rate(self) -> float:
        """Floating-point operations a second of the tensor cores at `tensor_clock`."""
        return self.processors * self.per_clock["tensor"] * self.tensor_clock * 1e9

    def rate(self, kind: str) -> float:
        """Results a second of the whole card at `clock`."""
        return self.processors * self.per_clock[kind] * self.clock * 1e9


_PER_CLOCK_80 = {
    "tensor": 2048,
    "float": 64,
    "half2": 128,
    "bfloat2": 64,
    "double": 32,
    "integer": 64,
    "multiply": 64,
    "shift": 64,
    "logic": 64,
    "compare": 64,
    "special": 16,
    "ex2": 16,
    "lg2": 16,
    "rcp": 16,
    "rsqrt": 16,
    "bits": 16,
    "convert": 16,
    "convert_small": 64,
    "convert_64": 16,
    "shuffle": 32,
    "reduce": 16,
    "vote": 64,
}
_PER_CLOCK_90 = {
    **_PER_CLOCK_80,
    "tensor": 4096,
    "float": 128,
    "bfloat2": 128,
    "double": 64,
    "convert": 64,
}
_LATENCY_80 = {
    "float": 4,
    "integer": 4,
    "multiply": 4,
    "special": 18,
    "shuffle": 23,
    "shared": 29,
    "l1": 38,
    "l2": 262,
    "memory": 466,
    "hmma_16816": 33,
    "barrier": 20,
}
_LATENCY_90 = {
    **_LATENCY_80,
    "shared": 29,
    "l1": 41,
    "l2": 263,
    "memory": 479,
    "hmma_16816": 33,
    "wgmma_64n256k16": 128,
    "wgmma_64n128k16": 64,
}

A100 = Card(
    name="A100",
    product="A100-SXM4-80GB",
    architecture=80,
    processors=108,
    boost=1.410,
    clock=1.410,
    tensor_clock=1.410,
    bandwidth=2039,
    copy_share=0.88,
    l2_bytes=40 << 20,
    l2_per_clock=5120,
    shared_bytes=164 << 10,
    shared_of_program=163 << 10,
    launch_us=5.0,
    gap_us=1.5,
    graph_gap_us=1.1,
    per_clock=_PER_CLOCK_80,
    latency=_LATENCY_80,
)
H100 = Card(
    name="H100",
    product="H100-SXM5-80GB",
    architecture=90,
    processors=132,
    boost=1.980,
    clock=1.830,
    tensor_clock=1.550,
    bandwidth=3352,
    copy_share=0.90,
    l2_bytes=50 << 20,
    l2_per_clock=5120,
    shared_bytes=228 << 10,
    shared_of_program=227 << 10,
    launch_us=5.0,
    gap_us=1.3,
    graph_gap_us=1.0,
    per_clock=_PER_CLOCK_90,
    latency=_LATENCY_90,
)
H200 = Card(
    name="H200",
    product="H200-SXM-141GB",
    architecture=90,
    processors=132,
    boost=1.980,
    clock=1.830,
    tensor_clock=1.550,
    bandwidth=4800,
    copy_share=0.90,
    l2_bytes=50 << 20,
    l2_per_clock=5120,
    shared_bytes=228 << 10,
    shared_of_program=227 << 10,
    launch_us=5.0,
    gap_us=1.3,
    graph_gap_us=1.0,
    per_clock=_PER_CLOCK_90,
    latency=_LATENCY_90,
)
CARDS = {card.name: card for card in (A100, H100, H200)}
SOURCES: dict[str, str] = {}
