"""The pairs of this rank's rows and those that came from others."""

import torch
from torch import Tensor

from fastssl.ops.contrast.pairs import Pairs


def rows_side(z: Tensor, labels: Tensor | None, window: Tensor | None) -> list[Tensor | None]:
    """What travels of some rows."""
    return [z, labels, None if window is None else window.T]


def columns_side(p: Pairs) -> list[Tensor | None]:
    """What travels of what rows of x are compared with."""
    if p.y is None:
        return rows_side(p.x, p.row_labels, p.row_window)
    return rows_side(p.y, p.column_labels, p.column_window)


def facing(p: Pairs, start: int | None, y, labels, window=None, columns: bool = False) -> Pairs:
    """Rows of x against columns that came; this rank's own begin at `start`."""
    if p.y is None and start == 0 and len(y) == len(p.x):
        return p  # with itself: half the work
    excluded = partner = None
    if start is not None:
        if p.y is None:
            excluded = torch.arange(start, start + len(p.x), device=y.device)
        if p.partner is not None:
            partner = torch.where(p.partner < 0, -1, p.partner + start)
    return p._replace(
        y=y,
        normalize_y=p.normalize_x if p.y is None else p.normalize_y,
        columns=columns,
        excluded=excluded,
        partner=partner,
        column_labels=labels,
        column_window=None if window is None else window.T.contiguous(),
    )


def swapped(p: Pairs) -> Pairs:
    """Columns as rows."""
    partner = p.partner
    if partner is not None:
        c = len(p.y)
        index = torch.arange(len(partner), device=partner.device)
        partner = partner.new_full((c + 1,), -1)
        partner = partner.scatter(0, torch.where(p.partner < 0, c, p.partner), index)[:c]
    return p._replace(
        x=p.y,
        y=p.x,
        normalize_x=p.normalize_y,
        normalize_y=p.normalize_x,
        columns=False,
        partner=partner,
        row_labels=p.column_labels,
        column_labels=p.row_labels,
        row_window=p.column_window,
        column_window=p.row_window,
        threshold=None,
    )
