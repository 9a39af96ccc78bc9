"""What a run logged, as curves."""

import numpy as np
from matplotlib.figure import Figure

from fastssl.train.pictures.style import COLOURS, panels

#: What a step's line in metrics.jsonl holds besides the method's scalars.
_NOT_SCALARS = {"event", "step", "epoch", "lr", "images_per_second"}

#: What is measured on features during training, by its key.
ONLINE = {
    "knn": "online kNN accuracy, %",
    "rank_me": "RankMe: effective rank of features",
    "deviation": "deviation of normalised features",
}


def curves(metrics: list[dict]) -> Figure | None:
    """Loss, learning rate and the method's other scalars by step, and what is measured by epoch.

    Args:
        metrics: the lines of metrics.jsonl.

    Returns:
        A figure, or None where no step was logged.
    """
    steps = [line for line in metrics if line["event"] == "step"]
    online = [line for line in metrics if line["event"] == "online"]
    if not steps:
        return None
    scalars = [key for key in steps[0] if key not in _NOT_SCALARS and key != "loss"]
    measured = [key for key in ONLINE if any(key in line for line in online)]
    figure, axes = panels(2 + len(scalars) + len(measured))
    draw_steps(next(axes), steps, "loss")
    axis = next(axes)
    axis.plot([line["step"] for line in steps], [line["lr"] for line in steps], color=COLOURS[0])
    axis.set(title="learning rate", xlabel="step", ylim=(0, None))
    axis.ticklabel_format(axis="y", scilimits=(-2, 4))
    for key in scalars:
        draw_steps(next(axes), steps, key)
    for key in measured:
        draw_online(next(axes), online, key, color=COLOURS[2])
    return figure


def draw_steps(axis, steps: list[dict], key: str) -> None:
    """A scalar of every step, thin, and its running mean over a thirtieth of the run."""
    kept = [line for line in steps if key in line]
    x, y = (np.array([line[name] for line in kept], float) for name in ("step", key))
    window = np.ones(max(1, len(y) // 30))
    if len(window) == 1:
        axis.plot(x, y, color=COLOURS[0], marker="." if len(y) < 30 else None)
    else:
        # Fewer neighbours count at the ends.
        mean = np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")
        axis.plot(x, y, color=COLOURS[0], linewidth=0.6, alpha=0.45, label="each step")
        axis.plot(x, mean, color=COLOURS[4], linewidth=1.6, label=f"mean of {len(window)}")
        axis.legend(frameon=False, fontsize="small")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(title=key.replace("_", " "), xlabel="step")


def draw_online(axis, online: list[dict], key: str, **style) -> None:
    """A measurement during training over the epochs; accuracies in percent."""
    kept = [line for line in online if line.get(key) is not None]
    scale = 100 if key == "knn" else 1
    values = [scale * line[key] for line in kept]
    axis.plot([line["epoch"] for line in kept], values, marker=".", **style)
    axis.set(title=ONLINE[key], xlabel="epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
