"""Figures of a report, drawn without a display and without pyplot's global state.

A figure is drawn once as SVG. In the page, its ink takes the colour of the page's text and its
paper is transparent, so that it can be read on light and dark paper. The files beside the page
keep both. All text is drawn as it is: a name may hold `$`, `<` or any other character.
"""

import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.foundation import write_atomically

# Points of a curve. More cannot be told apart on a screen, and slow the page down.
MAX_POINTS = 300
MAX_LABEL = 56  # characters
NARROW = 12  # columns of a heat map that is no wider than other figures
INK, PAPER = "#1b1f24", "#fefefe"  # of the style
# Okabe and Ito's colours for all kinds of sight, those that show on light and dark paper.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1")
STYLE = Path(__file__).with_suffix(".mplstyle")


@dataclass(frozen=True)
class Curve:
    """A curve over the words seen, with the band that belongs to it.

    Args:
        x, y: words seen, ascending and positive, and values [points].
        low, high: edges of the band [points]; None: there is no band.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def downsampled(label: str, x: np.ndarray, y: np.ndarray) -> Curve:
    """Return a curve of at most `MAX_POINTS` points: means in bins of equal width in log(x).

    The band reaches from the least to the greatest value of each bin, so that no outlier is
    lost.

    Args:
        x, y: words seen, positive, and values, finite, in any order [rows].
    """
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    if len(x) <= MAX_POINTS:
        return Curve(label, x, y)
    edges = np.geomspace(x[0], x[-1], MAX_POINTS + 1)[:-1]
    starts = np.unique(np.searchsorted(x, edges))
    sizes = np.diff(np.append(starts, len(x)))
    x, mean = (np.add.reduceat(values, starts) / sizes for values in (x, y))
    low, high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
    return Curve(label, x, mean, low, high)


def mean_curve(label: str, curves: Sequence[Curve]) -> Curve:
    """Return the mean of curves with a band of one sample standard deviation.

    The curves are interpolated linearly in log(x), where all of them have values. One curve has
    no band.
    """
    first = max(curve.x[0] for curve in curves)
    last = min(curve.x[-1] for curve in curves)
    x = max((curve.x for curve in curves), key=len)
    x = np.union1d(x[(x > first) & (x < last)], [first, last] if first <= last else [])
    values = [np.interp(np.log(x), np.log(curve.x), curve.y) for curve in curves]
    mean = np.mean(values, axis=0)
    sd = np.std(values, axis=0, ddof=1) if len(curves) > 1 else math.nan
    return Curve(label, x, mean, mean - sd, mean + sd)


def plateau(values: np.ndarray) -> int | None:
    """Return the index from which values hardly rise: 95 % of the whole rise are reached.

    The rise is that from the first value to the greatest. It is None if nothing rises, or if
    only the last value reaches the share: then the values may rise further.

    Args:
        values: scores in the order of the words seen [revisions], at least one.
    """
    enough = values[0] + 0.95 * (values.max() - values[0])
    index = int(np.argmax(values >= enough))
    return index if 0 < index < len(values) - 1 else None


def curves(curves: Sequence[Curve], ylabel: str, is_loss=False, stars=()) -> Any:
    """Return a figure of curves over words seen, on a logarithmic axis.

    Args:
        is_loss: adds the perplexity on the right.
        stars: points (x, y) that are marked with a star.
    """
    from matplotlib.ticker import EngFormatter

    figure, axes = _figure()
    axes.set_xscale("log", subs=(2, 5))
    axes.set(xlabel="words seen", ylabel=ylabel)
    for curve, style in zip(curves, _styles(len(curves))):
        marker = "o" if len(curve.x) < 40 else ""  # few points are shown
        label = _clean(curve.label)
        axes.plot(curve.x, curve.y, marker=marker, label=label, **style)
        if curve.low is not None:
            band = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
            axes.fill_between(curve.x, curve.low, curve.high, **band)
    for x, y in stars:
        axes.plot([x], [y], "*", color=INK, markersize=9, label="")
    first, last = axes.get_xlim()
    words = EngFormatter(sep="")  # 300k, 10M
    axes.xaxis.set_major_formatter(words)
    axes.xaxis.set_minor_formatter(words if last < 300 * first else lambda *_: "")
    if is_loss:
        right = axes.secondary_yaxis("right")
        right.set_ylabel("perplexity")
        right.yaxis.set_major_formatter(_perplexity)
    _legend(figure, axes)
    return figure


def phenomena(scores: dict[str, dict], references: dict[str, float]) -> Any:
    """Return a figure of scores by phenomenon, with vertical lines for references.

    Args:
        scores: label of a model -> phenomenon -> percentage.
        references: label of a line -> percentage.
    """
    names = list(dict.fromkeys(name for terms in scores.values() for name in terms))
    figure, axes = _figure(0.7 + 0.2 * len(names))
    dashes = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 3)))
    for (label, value), dash in zip(references.items(), dashes):
        axes.axvline(value, color=INK, linestyle=dash, linewidth=0.9, label=label)
    for (label, terms), style in zip(scores.items(), _styles(len(scores))):
        values = [terms.get(name, math.nan) for name in names]
        marks = {"color": style["color"], "label": _clean(label)}
        axes.plot(values, range(len(names)), "o", **marks)
    axes.set_yticks(range(len(names)), list(map(_clean, names)))
    axes.set(xlabel="score (%)", xlim=(0, 100), ylim=(len(names) - 0.5, -0.5))
    _legend(figure, axes)
    return figure


def heat_map(rows: Sequence[str], columns: Sequence[str], values: np.ndarray) -> Any:
    """Return a figure of percentages [rows, columns] as colours; NaN is left empty."""
    columns = list(map(_clean, columns))
    height = 0.5 + 0.22 * len(rows) + 0.07 * max(map(len, columns))
    figure, axes = _figure(height, 5.2 if len(columns) <= NARROW else 10.4)
    axes.grid(False)
    # The colours diverge at chance: orange is worse than guessing, purple is better.
    axes.pcolormesh(values, cmap="PuOr", vmin=0, vmax=100, edgecolor="face")
    axes.set_yticks(np.arange(len(rows)) + 0.5, list(map(_clean, rows)))
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90)
    axes.invert_yaxis()
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        style = {"color": "#ffffff" if abs(value - 50) > 30 else "#000000"}
        style |= {"ha": "center", "va": "center", "fontsize": 6}
        axes.text(column + 0.5, row + 0.5, f"{value:.0f}", **style)
    return figure


def save(draw: Callable[..., Any], file: Path, *args: Any, **options: Any) -> str:
    """Draw a figure, write it as SVG and PNG, and return the `<svg>` element for a page.

    Args:
        draw: one of the functions above, which gets `args` and `options`.
        file: path of the files without a suffix. Its name makes the ids in the page unique.
    """
    import matplotlib

    svg = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(fname=STYLE), warnings.catch_warnings():
        # A PNG has boxes in the place of characters that the font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = draw(*args, **options)
        figure.savefig(svg, format="svg", metadata=nothing)
        figure.savefig(file.with_suffix(".png"), format="png")
    write_atomically(file.with_suffix(".svg"), svg.getvalue())
    element = svg.getvalue()[svg.getvalue().index("<svg") :]
    element = element.replace(INK, "currentColor").replace(PAPER, "none")
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{file.name}-", element)
    return re.sub(r' (width|height)="[\d.]+pt"', "", element, count=2)


def _figure(height: float = 3.0, width: float = 5.2) -> tuple[Any, Any]:
    """Return an empty figure and its axes. Sizes in inches: a width of 5.2 fits on a phone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _styles(number: int) -> list[dict[str, Any]]:
    """Return styles for lines; dashes tell lines of equal colour apart."""
    dashes = ("-", "--", ":", "-.")
    pairs = zip(itertools.cycle(COLOURS), range(number))
    return [{"color": c, "linestyle": dashes[i // len(COLOURS) % 4]} for c, i in pairs]


def _legend(figure: Any, axes: Any) -> None:
    """Add a legend below the axes, if there is more than one label. The figure grows."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = 1 if max(map(len, labels)) > 30 else 2
        figure.set_figheight(figure.get_figheight() + 0.16 * len(labels) / columns)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _clean(text: str) -> str:
    """Return a text of one line that fits into a figure and that SVG can hold.

    A space before an underscore keeps it in the legend, from which matplotlib would drop it.
    """
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    text = text if len(text) <= MAX_LABEL else f"{text[:32]}…{text[-22:]}"
    return f" {text}" if text.startswith("_") else text


def _perplexity(loss: float, position: int | None = None) -> str:
    perplexity = math.exp(min(loss, 700))
    return f"{perplexity:{',.0f' if 100 < perplexity < 1e7 else '.3g'}}"
