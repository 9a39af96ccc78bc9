"""Published rates and latencies of the cards that the model predicts for.

Nothing here was measured by this project: each figure is somebody's, and `SOURCES` says whose.
Where two sources differ, the comment says which is taken. Figures that follow from another one by
arithmetic show it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Card:
    """A card's published figures. "Processor" is a streaming multiprocessor.

    Attributes:
        name: short name, as in the model's tables.
        product: the full name.
        architecture: compute capability times ten.
        processors: multiprocessors that are enabled.
        clock: the clock of kernels without tensor work, GHz: the highest of the data sheet.
        tensor_clock: the clock of kernels that keep the tensor cores busy all the time, GHz.
        bandwidth: memory, GB/s by the data sheet.
        copy_share: the share of it that streaming kernels reach, read and written bytes together.
        l2_per_clock: bytes that the whole card reads from L2 in a clock.
        shared_bytes: shared memory of a processor that programs can have.
        shared_of_program: shared memory that one program can have.
        gap_us: from the end of a kernel to the start of the next, in a stream that is ahead.
        graph_gap_us: the same between nodes of a CUDA graph.
        small_us: a copy of 64 kB as one of thousands of nodes of a graph, gap included.
        per_clock: results per clock and processor, by kind of operation; "tensor" and "hmma" are
            floating-point operations, a multiply-add counts as two.
        latency: clocks until a result can be used, by kind of operation.
        shared_per_clock: bytes that a processor reads from shared memory or L1 in a clock.
        registers: 32-bit registers of a processor.
        warps: resident warps of a processor.
        programs: resident programs (thread blocks) of a processor.
    """

    name: str
    product: str
    architecture: int
    processors: int
    clock: float
    tensor_clock: float
    bandwidth: float
    copy_share: float
    l2_per_clock: int
    shared_bytes: int
    shared_of_program: int
    gap_us: float
    graph_gap_us: float
    small_us: float
    per_clock: Mapping[str, float]
    latency: Mapping[str, float]
    shared_per_clock: int = 128
    registers: int = 65536
    warps: int = 64
    programs: int = 32

    @property
    def copy_rate(self) -> float:
        """Bytes a second that streaming kernels reach, read and written together."""
        return self.bandwidth * 1e9 * self.copy_share

    @property
    def tensor_rate(self) -> float:
        """Floating-point operations a second of the tensor cores at `tensor_clock`."""
        return self.processors * self.per_clock["tensor"] * self.tensor_clock * 1e9

    @property
    def least_us(self) -> float:
        """What hardly any kernel goes below: `small_us` without the gap."""
        return self.small_us - self.graph_gap_us

    @property
    def pace(self) -> tuple:
        """All of a card that decides how many clocks its processors take for some code."""
        rates = *self.per_clock.items(), *self.latency.items()
        return self.processors, self.l2_per_clock, self.shared_per_clock, *rates

    def rate(self, kind: str) -> float:
        """Results a second of the whole card at `clock`."""
        return self.processors * self.per_clock[kind] * self.clock * 1e9


#: By "arithmetic" in `SOURCES`, unless an entry says otherwise.
_PER_CLOCK_80 = {
    # 312 TFLOP/s = 108 processors x 2048 x 1.41 GHz; "hmma" is what mma.sync reaches of it.
    "tensor": 2048,
    "hmma": 2048,
    "float": 64,  # add, multiply, fused multiply-add
    "double": 32,
    "half2": 128,  # instructions of two results each
    "bfloat2": 64,
    "multiply": 64,  # 32-bit integer multiply, multiply-add
    "logic": 64,
    "special": 16,  # powers and logarithms to base 2, reciprocals, square roots of them
    "bits": 16,  # population count, leading zeros
    "convert": 16,
    "convert_to_integer": 16,
    "convert_small": 64,  # from 8 and 16 to 32 bits, integers
    "convert_64": 16,
    "shuffle": 32,
    "reduce": 16,
}
_PER_CLOCK_90 = {
    **_PER_CLOCK_80,
    # 989.4 TFLOP/s = 132 processors x 4096 x 1.83 GHz.
    "tensor": 4096,
    # mma.sync, the older instruction: 494.4 TFLOP/s on an H800 (114 processors, 1.755 GHz).
    "hmma": 2470,
    "float": 128,
    "double": 64,
    "bfloat2": 128,
    # The table counts the cheap ones (two floats packed into 16 bits each, integer to float), which
    # run beside integers; float to integer goes to the special units at 16.
    "convert": 64,
    "convert_to_integer": 16,
}
#: "shared" to "memory" by "latencies"; those of float and integer operations are stall counts.
_LATENCY_80 = {
    "special": 18,
    "shuffle": 23,
    "shared": 29,
    "l1": 33,
    "l2": 262,  # 205 in the near half of L2, 400 in the far one
    "memory": 466,
    "hmma_16816": 33,  # 24.6 where it accumulates in float16
    "barrier": 20,
}
_LATENCY_90 = {
    **_LATENCY_80,
    "l1": 40,
    "l2": 263,  # 208 near, 357 far
    "memory": 570,  # H100 SXM; 479 on an H800 PCIe, 679 on a GH200
}

A100 = Card(
    name="A100",
    product="A100-SXM4-80GB",
    architecture=80,
    processors=108,
    clock=1.410,
    tensor_clock=1.226,  # 271.2 TFLOP/s / (108 x 2048)
    bandwidth=2039,
    copy_share=0.854,  # 1741 / 2039
    l2_per_clock=5120,
    shared_bytes=164 << 10,
    shared_of_program=163 << 10,
    gap_us=0.9,
    graph_gap_us=0.5,
    small_us=1.4,
    per_clock=_PER_CLOCK_80,
    latency=_LATENCY_80,
)
H100 = Card(
    name="H100",
    product="H100-SXM5-80GB",
    architecture=90,
    processors=132,
    clock=1.980,
    tensor_clock=1.469,  # 794.5 TFLOP/s / (132 x 4096)
    bandwidth=3352,
    copy_share=0.898,  # 3010 / 3352
    l2_per_clock=5120,
    shared_bytes=228 << 10,
    shared_of_program=227 << 10,
    gap_us=0.9,
    graph_gap_us=0.5,
    small_us=2.3,
    per_clock=_PER_CLOCK_90,
    latency=_LATENCY_90,
)
#: The same chip and the same 700 W; no source was found for its copies: an H100's share.
H200 = replace(H100, name="H200", product="H200-SXM-141GB", bandwidth=4800)
CARDS = {card.name: card for card in (A100, H100, H200)}

_BENCHES = "github.com/te42kyfo/gpu-benches (RRZE Erlangen)"
_LUO = (
    "Luo et al., Benchmarking and Dissecting the Nvidia Hopper GPU Architecture, IPDPS 2024, "
    "arXiv:2402.13499 (H800 PCIe, A100 PCIe), and its longer form, arXiv:2501.12084"
)
#: Whose figures these are, by field.
SOURCES = {
    "processors": "NVIDIA's white papers on A100 (2020) and H100 (2022); H200 has an H100's",
    "clock": (
        "data sheets: 19.5 TFLOP/s of float32 are 108 x 128 x 1.41 GHz, 66.9 are 132 x 256 x "
        "1.98 GHz"
    ),
    "tensor_clock": (
        "calibrated: the clock at which the tensor cores' full rate is the best product that a "
        "search over shapes found, 271.2 TFLOP/s on an A100 SXM and 794.5 on an H100 SXM "
        "(Bekman, github.com/stas00/ml-engineering, Maximum Achievable Matmul FLOPS, bfloat16, "
        "torch 2.6 and 2.7). Both cards lower their clock at 400 and 700 W. The true clock is a "
        "little higher, as no product is all tensor work: NVIDIA counts 1.305 GHz for an A100 "
        "under HPL (glennklockwood.com/garden/peak-FLOPS), and the data sheet of an H100 1.83"
    ),
    "bandwidth": "data sheets: A100 80GB SXM, H100 SXM (2619 MHz x 2 x 5120 bit), H200 SXM",
    "copy_share": (
        f"A100: {_BENCHES}, gpu-small-kernels/a100_80_graph.txt, scale of 940 MB, 1741 GB/s. "
        "H100: Dao et al., github.com/Dao-AILab/quack, media/2025-07-10-membound-sol.md, a "
        "softmax of 16k x 131k, 3.01 TB/s in Nsight Compute. H200: an H100's share"
    ),
    "l2_per_clock": (
        "A100: NVIDIA's white paper. H100 and H200: calibrated, an A100's figure, as for an H100 "
        "NVIDIA gives none. Programs that read the same lines at the same time get more than "
        f"microbenchmarks of separate ones: 3830 on an A100 ({_BENCHES}, gpu-l2-cache), 3942 on an "
        f"H800 ({_LUO}), 4900 on a GH200 ({_BENCHES}); with 3942 the products of published.py "
        "would be predicted 15 to 41 % too long, with 5120 it is -1 to +9 %"
    ),
    "shared_bytes": "CUDA C++ Programming Guide, technical specifications by compute capability",
    "shared_per_clock": (
        f"32 banks of 4 bytes, CUDA C++ Programming Guide; {_LUO}: 124 of 128 reached from L1"
    ),
    "registers": "CUDA C++ Programming Guide, technical specifications by compute capability",
    "gap_us": (
        "NVIDIA, Getting Started with CUDA Graphs (developer.nvidia.com/blog/cuda-graphs, 2019): "
        "kernels of 2.9 us take 3.8 us each in a stream and 3.4 us each in a graph, on a V100; for "
        "all cards"
    ),
    "small_us": (
        f"{_BENCHES}, gpu-small-kernels with -graph: 65.5 kB at 48 GB/s on an A100, at 28 GB/s on "
        "a GH200; launched one by one 2.7 and 2.5 us, which is the host's time"
    ),
    "arithmetic": (
        "CUDA C++ Programming Guide 12, Throughput of Native Arithmetic Instructions, columns 8.0 "
        "and 9.0, from memory; float, double, half and integer read in github.com/openxla/xla, "
        "xla/stream_executor/cuda/cuda_core_info_table.cc, which quotes it"
    ),
    "convert_to_integer": (
        "from a B300, pipe counters of Nsight Compute: F2I 0.5 warps a clock, I2FP and F2IP 2"
    ),
    "hmma": f"{_LUO}, table VII: on Hopper mma.sync reaches 63 % of the peak",
    "latencies": (
        f"shared, l2, memory of an A100: {_LUO}, table IV. l1: {_BENCHES}, "
        "gpu-latency/a100_80.txt, 33.0. H100 SXM: l1 40.2, l2 259.9, memory 570.5, shared 28.6 in "
        "a study with CUDA 12.8 at 1.98 GHz; l1 38 and shared 29.9 in a report of MT4G; both in "
        "public repositories that a search by text showed without their names"
    ),
    "hmma_16816": (
        "Sun et al., Dissecting Tensor Cores via Microbenchmarks, arXiv:2206.02874, from memory"
    ),
    "wgmma": (
        f"{_LUO}, table VIII: 64 x 128 x 16 takes 64 clocks, 64 x 256 x 16 takes 128: what the "
        "tensor cores' rate says"
    ),
    "special, shuffle, barrier": (
        "assumed: no source for these cards was found. Jia et al., arXiv:1804.06826 and "
        "arXiv:1903.07486, have figures of this size for Volta and Turing; on a B300 ex2 takes 14, "
        "rcp and rsqrt 40"
    ),
}
