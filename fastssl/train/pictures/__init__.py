"""Pictures of a run: its curves, its accuracies, its features, its views.

Every function that draws returns a Matplotlib figure; none touches pyplot and its global state.
Matplotlib and scikit-learn are slow to import, so only what draws imports them.
"""

from fastssl.train.pictures.drawing import NAMES, draw, report, save
from fastssl.train.pictures.grids import COLUMNS, grid, joined

__all__ = ["COLUMNS", "NAMES", "draw", "grid", "joined", "report", "save"]
