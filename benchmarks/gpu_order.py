"""Which figure is worth the next seconds: those of targets, then the largest gap to the floor."""

import itertools
import json
import math
from pathlib import Path

from benchmarks.gpu_measure import Step

#: What the model of the machine code predicts.
MODEL = Path(__file__).parent / "results" / "gpu_model.json"


def _key(family: str, case: str, size: dict) -> tuple:
    return family, case, tuple(sorted(size.items()))


class Predictions:
    """Floors and predicted times of calls on one card, in milliseconds.

    Args:
        gpu: the card's name, of which the model's name is a part.
        path: a file of the model; where it is missing, nothing is predicted.
    """

    def __init__(self, gpu: str, path: Path = MODEL):
        calls = json.loads(path.read_text())["calls"] if path.exists() else []
        self.of = {
            _key(call["family"], call["case"], call["size"]): call
            for call in calls
            if call["card"] in gpu
        }

    def __call__(self, step: Step) -> dict:
        """What is known of "floor_ms", "predicted_ms", "graph_ms" (in a graph) and "limiter"."""
        call = self.of.get(_key(step.family, step.case, step.size), {})
        times = {f"{key}_ms": call.get(f"{key}_us") for key in ("floor", "predicted", "graph")}
        found = {key: value / 1e3 for key, value in times.items() if value}
        return {**found, "limiter": call["limiter"]} if call.get("limiter") else found

    def gap(self, step: Step) -> float | None:
        """Predicted over floor."""
        known = self(step)
        if "floor_ms" not in known or "predicted_ms" not in known:
            return None
        return known["predicted_ms"] / known["floor_ms"]


def ordered(steps: list[Step], predictions: Predictions) -> list[Step]:
    """Targets first, then the largest gaps, then the rest; peers right after what they are beside.

    Where nothing is predicted, families take turns, each in the order in which it gave its steps.
    """
    groups = [list(group) for _, group in itertools.groupby(steps, lambda step: step.place)]
    ranks: dict[str, int] = {}

    def key(group: list[Step]) -> tuple:
        first = group[0]
        rank = ranks[first.family] = ranks.get(first.family, -1) + 1
        gap = predictions.gap(first)
        return first.target is None, math.inf if gap is None else -gap, rank

    return [step for group in sorted(groups, key=key) for step in group]
