"""What the model says of a launch and of a call, as benchmarks/results/gpu_model.json keeps it."""

from dataclasses import dataclass

from benchmarks.machine_code.cards import Card
from benchmarks.machine_code.predict import Kernel, Prediction

FAMILIES = ("nt_xent", "contrast", "augment", "patch", "known")


@dataclass(frozen=True)
class Work:
    """What a launch or a call has to do: operations of products, exponentials, bytes of memory."""

    flop: float = 0.0
    exponentials: float = 0.0
    moved: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.flop + other.flop,
            self.exponentials + other.exponentials,
            self.moved + other.moved,
        )

    def floor_us(self, card: Card) -> float:
        """The time that remains if all three overlap perfectly, at the published rates."""
        seconds = (
            self.flop / card.tensor_rate,
            self.exponentials / card.rate("special"),
            self.moved / (card.bandwidth * 1e9),
        )
        return max(seconds) * 1e6


def launch(
    family: str, case: str, kernel: Kernel, card: Card, size: dict, floor_us: float,
    prediction: Prediction, per_iteration: dict, test: str, name: str | None = None,
    elements: float = 0.0,
) -> dict:  # fmt: skip
    """One launch's record. No launch takes less than `card.least_us`: its limiter is "launch" then.

    Args:
        family: one of FAMILIES.
        case: what is computed.
        kernel: the compiled kernel.
        card: the card.
        size: the problem's size, in the words of benchmarks/gpu_*.py.
        floor_us: the least time, in microseconds.
        prediction: what the model says.
        per_iteration: instructions of a warp in a pass through the main loop, by kind.
        test: the test that executes the kernel's source.
        name: the kernel's name, if the compiler's is another.
        elements: what a program works on in a pass, if that can be counted.
    """
    predicted, limiter = prediction.microseconds, prediction.limiter
    if predicted < card.least_us:
        predicted, limiter = card.least_us, "launch"
    threads = 32 * kernel.warps
    per_element = {
        k: round(v * threads / elements, 2) for k, v in per_iteration.items() if elements
    }
    return {
        "family": family,
        "case": case,
        "kernel": name or kernel.name,
        "card": card.name,
        "arch": card.architecture,
        "size": size,
        "floor_us": round(floor_us, 3),
        "predicted_us": round(predicted, 3),
        "limiter": limiter,
        "share": {u: s for u, s in prediction.share.items() if s >= 0.05},
        "registers": kernel.registers,
        "spills": kernel.spills,
        "shared_bytes": kernel.shared,
        "occupancy_warps": prediction.resident * kernel.warps,
        "waves": round(prediction.waves, 2),
        "per_iteration": {k: v for k, v in per_iteration.items() if v},
        "per_element": {
            k: v for k, v in per_element.items() if v and k not in ("tensor", "barrier")
        },
        "test": test,
    }


def call(
    family: str, case: str, card: Card, size: dict, floor_us: float, launches: list[dict]
) -> dict:
    """A call of a public function: its launches one after the other, in a stream that is ahead."""
    predicted = sum(x["predicted_us"] for x in launches)
    return {
        "family": family,
        "case": case,
        "card": card.name,
        "size": size,
        "floor_us": round(floor_us, 3),
        "kernels_us": round(predicted, 3),
        "predicted_us": round(predicted + len(launches) * card.gap_us, 3),
        "graph_us": round(predicted + len(launches) * card.graph_gap_us, 3),
        "launches": len(launches),
    }
