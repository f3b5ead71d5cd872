"""A picture of the ways of sub-networks through their network."""

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from nsn import files
from nsn.paths import Kept, Paths

# Lengths are inches; _BOX is the height of a block at full width.
_BOX, _GAP, _LINE, _HEAD, _FOOT, _MARGIN = 0.52, 0.16, 0.12, 0.75, 0.4, 0.15
_CHARACTER = 0.075
_LONGEST = 24  # characters of a name, before it is cut
_MOST_PIXELS = 20_000
_SHARED: dict[str, Any] = {"facecolor": "#8fb4dc", "edgecolor": "#2f5f94", "linewidth": 0.8}
_OWN: dict[str, Any] = {**_SHARED, "facecolor": "#f6c78f", "edgecolor": "#a65a00", "hatch": "////"}
_FULL: dict[str, Any] = {"facecolor": "white", "edgecolor": "#d0d0d0", "linewidth": 0.6}
_GREY = "#8a8a8a"


def plot_paths(paths: Paths, path: Path, title: str) -> None:
    """Draws a row for each sub-network with a box for each block that it keeps.

    A box is as high as what is kept of the block; one with several dimensions is made of as many
    columns. A light outline shows the block at full width.

    Args:
        paths: what to draw.
        path: the PNG file to write.
        title: above the rows.

    Raises:
        OSError: where the system refuses to write.
    """
    left = _MARGIN + _CHARACTER * max(len(_short(way.name)) for way in paths.ways) + 0.15
    columns = [_column_width(paths, place) for place in range(len(paths.blocks))]
    starts = [left + sum(columns[:place]) for place in range(len(columns))]
    right = left + sum(columns)
    boxes = [kept for way in paths.ways for kept in way.kept if kept is not None]
    pitch = _BOX + 0.24 + _LINE * max(len(_texts(kept)) for kept in boxes)
    width = max(right + 1.3, 4.2)
    height = _HEAD + pitch * len(paths.ways) + _FOOT
    with mpl.rc_context({"font.size": 8, "hatch.linewidth": 0.5}):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        room = int((width - 2 * _MARGIN) / 0.09)
        title = title if len(title) <= room else f"…{title[1 - room :]}"
        axes.text(_MARGIN, 0.18, title, va="center", weight="bold", size=9, parse_math=False)
        for (name, kind), start, column in zip(paths.blocks, starts, columns, strict=True):
            middle = start + column / 2
            axes.text(middle, _HEAD - 0.3, _short(name), ha="center", va="center")
            axes.text(middle, _HEAD - 0.14, kind, ha="center", va="center", size=6.5, color=_GREY)
        base = paths.ways[0].parameters
        for row, way in enumerate(paths.ways):
            middle = _HEAD + pitch * row + _BOX / 2
            axes.text(_MARGIN, middle, _short(way.name), va="center", weight="bold")
            axes.annotate(
                "",
                (right + 0.08, middle),
                (left, middle),
                arrowprops={"arrowstyle": "->", "color": _GREY, "shrinkA": 0, "shrinkB": 0},
                zorder=0,
            )
            for kept, start, column in zip(way.kept, starts, columns, strict=True):
                if kept is not None:
                    _draw(axes, kept, start, column, middle)
            share = f"\n{100 * way.parameters / base:.1f} % of base" if row and base else ""
            axes.text(right + 0.15, middle, f"{way.parameters:,}{share}", va="center")
        axes.text(right + 0.15, _HEAD - 0.3, "parameters", va="center")
        figure.legend(
            handles=[
                Patch(**_SHARED, label="shared with another sub-network"),
                Patch(**_OWN, label="its own alone"),
            ],
            loc="lower left",
            ncols=2,
            frameon=False,
        )
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=min(150, _MOST_PIXELS / max(width, height)))
    files.write(path, image.getbuffer())


def _draw(axes: Axes, kept: Kept, start: float, column: float, middle: float) -> None:
    """A block's box in one row: one part for each dimension."""
    style = _OWN if kept.own else _SHARED
    width = column - _GAP
    part = width / len(kept.widths)
    for place, each in enumerate(kept.widths):
        x = start + _GAP / 2 + place * part
        for fraction, look in ((1.0, _FULL), (each.fraction, style)):
            height = _BOX * fraction
            axes.add_patch(Rectangle((x, middle - height / 2), part, height, **look))
    for line, text in enumerate(_texts(kept)):
        y = middle + _BOX / 2 + 0.1 + _LINE * line
        axes.text(start + column / 2, y, text, ha="center", va="center", size=6.5)


def _texts(kept: Kept) -> list[str]:
    """What stands below a box: at most three lines."""
    texts = kept.texts()
    return texts if len(texts) <= 3 else [*texts[:2], f"and {len(texts) - 2} more"]


def _column_width(paths: Paths, place: int) -> float:
    """What a block's texts need."""
    boxes = [way.kept[place] for way in paths.ways]
    texts = [text for kept in boxes if kept is not None for text in _texts(kept)]
    name, kind = paths.blocks[place]
    letters = max(len(_short(name)), *(0.85 * len(text) for text in [kind, *texts]))
    return max(0.75, _CHARACTER * letters + _GAP)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
