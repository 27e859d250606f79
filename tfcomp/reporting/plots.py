"""Plots as SVG text, drawn so that they sit in a page: its font, its light and dark colours."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from tfcomp.reporting import reading, units
from tfcomp.reporting.reading import Stage

# Drawn in these stand-ins, which the SVG text then replaces by the page's own variables. The
# second colour is used where the SVG stands alone.
_COLOURS = {
    "#010101": ("--ink", "#1d2126"),
    "#020202": ("--muted", "#5c6670"),
    "#030303": ("--line", "#dfe3e8"),
    "#040404": ("--accent", "#0b6e6e"),
    "#050505": ("--surface", "#ffffff"),
    "#060606": ("--second", "#b4571b"),
    "#070707": ("--path", "#a3adb8"),
}
_INK, _MUTED, _LINE, _ACCENT, _SURFACE, _SECOND, _PATH = _COLOURS
_STYLE = {
    "svg.fonttype": "none",
    "axes.unicode_minus": True,
    "font.size": 11.0,
    "path.simplify": False,
}
_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}

Box = tuple[float, float, float, float]


# Points of accuracy, as a fraction, that a plot of stages spans at most.
_IN_VIEW = 0.2


def accuracy_against(report: Mapping[str, Any], quantity: Literal["bytes", "latency_ms"]) -> str:
    """Accuracy of every stage against its size or its latency, as one SVG.

    Each stage is a labelled point with its 95 % Wilson interval; the path joins them in the
    order of the run. A filled point is on the Pareto front: no other stage is at least as
    accurate and at least as small (fast), and better in one of them.

    Args:
        report: The report, as in `report.json`.
        quantity: "bytes" (raw file size) or "latency_ms" (median).

    Returns:
        The SVG element; empty if no stage has both figures. The same report gives the same text.

    Raises:
        ValueError: If `quantity` is neither.

    Example:
        >>> accuracy_against({"stages": []}, "bytes")
        ''
    """
    if quantity not in ("bytes", "latency_ms"):
        raise ValueError(f"Expected quantity 'bytes' or 'latency_ms', received {quantity!r}.")
    field = "bytes" if quantity == "bytes" else "median_ms"
    known = [
        stage
        for stage in reading.stages(report)
        if stage.accuracy is not None and getattr(stage, field)
    ]
    below = out_of_view(known)
    known = [stage for stage in known if stage not in below]
    if not known:
        return ""
    xs = [float(getattr(stage, field)) for stage in known]
    name = "file size" if quantity == "bytes" else "median latency"
    show = units.format_bytes if quantity == "bytes" else units.format_ms
    spoken = "; ".join(
        f"{s.name}: {show(x)}, {units.format_percent(s.accuracy, s.examples)}"
        for s, x in zip(known, xs, strict=True)
    )
    with _drawing(f"accuracy-{quantity}"):
        figure = _scatter(known, xs, quantity)
        return _svg(figure, f"Accuracy against {name}. {spoken}.")


def out_of_view(stages: Sequence[Stage]) -> list[Stage]:
    """Stages so far below the best accuracy that drawing them would flatten all the others.

    Channels removed and not yet trained again leave such a stage.
    """
    known = [stage for stage in stages if stage.accuracy is not None]
    best = max((stage.accuracy for stage in known if stage.accuracy is not None), default=0.0)
    return [s for s in known if s.accuracy is not None and s.accuracy < best - _IN_VIEW]


def training_curves(stage: Stage, limits: tuple[float, float] | None = None) -> str:
    """The training history of one stage as a small SVG: accuracy by epoch, else loss.

    Args:
        stage: The stage, with its history.
        limits: Ends of the y axis, so that several stages compare; by default its own.

    Returns:
        The SVG element; empty if there is no history to draw.

    Example:
        >>> training_curves(Stage(1, "teacher"))
        ''
    """
    metric, lines = curves(stage)
    if not lines:
        return ""
    with _drawing(f"curves-{stage.index}"):
        figure = Figure(figsize=(236 / 72, 165 / 72), dpi=72)
        axes = figure.add_axes((0.165, 0.225, 0.565, 0.715))
        _dress(axes)
        ends = []
        for (label, values), colour in zip(lines.items(), (_ACCENT, _SECOND), strict=False):
            epochs = np.arange(1, len(values) + 1)
            heights = np.array([math.nan if v is None else v for v in values], dtype=float)
            axes.plot(epochs, heights, color=colour, lw=1.8, marker="o", ms=3.2, mew=0)
            ends.append((label, colour, float(heights[np.isfinite(heights)][-1])))
        if limits:
            axes.set_ylim(*limits)
        longest = max(len(values) for values in lines.values())
        axes.set_xlim(0.7, longest + 0.3)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        if metric == "accuracy":
            axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
        axes.set_xlabel("epoch", color=_MUTED, fontsize=10, labelpad=2)
        _end_labels(axes, ends)
        spoken = "; ".join(f"{label} ends at {value:.4g}" for label, _, value in ends)
        return _svg(figure, f"{stage.name}: {metric} by epoch; {spoken}.")


def curves(stage: Stage) -> tuple[str, dict[str, list[float | None]]]:
    """What is drawn of a history: the metric, and its training and validation values."""
    for metric in ("accuracy", "loss"):
        pair = (("training", metric), ("validation", f"val_{metric}"))
        lines = {label: stage.history[key] for label, key in pair if key in stage.history}
        if lines:
            return metric, lines
    return "", {}


def pareto(xs: Sequence[float], ys: Sequence[float]) -> list[bool]:
    """Which points no other point dominates, where small x and large y are good.

    Example:
        >>> pareto([3.0, 1.0, 2.0], [0.9, 0.8, 0.7])
        [True, True, False]
    """
    points = list(zip(xs, ys, strict=True))
    return [not any(a <= x and b >= y and (a < x or b > y) for a, b in points) for x, y in points]


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    bounds: Box,
    obstacles: Sequence[Box] = (),
) -> list[Box]:
    """Boxes for labels beside their points: inside `bounds`, off each other, off the drawing.

    Greedy over rings of growing distance: a label never covers another while any ring has room.

    Args:
        points: Anchor of each label, in points (1/72 inch).
        sizes: Width and height of each label.
        bounds: (left, bottom, right, top) that the labels should stay within.
        obstacles: Boxes that are better left free: markers, lines.

    Returns:
        One (left, bottom, right, top) for each label.

    Example:
        >>> place_labels([(50.0, 50.0)], [(20.0, 10.0)], (0.0, 0.0, 100.0, 100.0))
        [(56.0, 45.0, 76.0, 55.0)]
    """
    placed: list[Box] = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        best: tuple[float, Box] | None = None
        for ring, step in itertools.product((6, 11, 18, 27, 38, 52, 70, 92, 120), range(16)):
            angle = math.tau * step / 16
            cx = x + (width / 2 + ring) * math.cos(angle)
            cy = y + (height / 2 + ring) * math.sin(angle)
            box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            cost = 1000.0 * sum(_overlap(box, other) > 0 for other in placed)
            cost += 500 * (_overlap(box, bounds) < width * height - 1e-6)
            cost += sum(3 + _overlap(box, other) / 8 for other in obstacles if _overlap(box, other))
            # A near label is better than a far one; right, left, above and below than askew.
            cost += ring / 8 + (0 if step % 8 == 0 else 0.2 if step % 4 == 0 else 0.5)
            if best is None or cost < best[0]:
                best = (cost, box)
        assert best is not None  # the candidates are a constant, not empty
        placed.append(best[1])
    return placed


def _overlap(a: Box, b: Box) -> float:
    """The common area of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _scatter(stages: Sequence[Stage], xs: Sequence[float], quantity: str) -> Figure:
    ys = [stage.accuracy or 0.0 for stage in stages]
    figure = Figure(figsize=(400 / 72, 300 / 72), dpi=72)
    axes = figure.add_axes((0.12, 0.15, 0.865, 0.83))
    _dress(axes)
    _x_axis(axes, xs, quantity)
    spans = [stage.interval or (y, y) for stage, y in zip(stages, ys, strict=True)]
    low, high = min(a for a, _ in spans), max(b for _, b in spans)
    room = max(0.12 * (high - low), 0.004)
    axes.set_ylim(low - room, high + room)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
    axes.plot(xs, ys, color=_PATH, lw=1.2, zorder=2, dash_capstyle="round")
    for x, (a, b) in zip(xs, spans, strict=True):
        axes.plot([x, x], [a, b], color=_PATH, lw=1.0, zorder=1, dashes=(1.5, 2))
    for x, y, front in zip(xs, ys, pareto(xs, ys), strict=True):
        fill = _ACCENT if front else _SURFACE
        axes.plot([x], [y], "o", ms=8, mfc=fill, mec=_ACCENT, mew=1.6, zorder=3)
    better = "smaller" if quantity == "bytes" else "faster"
    _corner_hint(axes, f"↖ {better} and more accurate")
    _label_points(figure, axes, stages, xs, ys, spans)
    return figure


def _label_points(
    figure: Figure,
    axes: Any,
    stages: Sequence[Stage],
    xs: Sequence[float],
    ys: Sequence[float],
    spans: Sequence[tuple[float, float]],
) -> None:
    FigureCanvasAgg(figure)
    points = [tuple(p) for p in axes.transData.transform(list(zip(xs, ys, strict=True)))]
    names = [f"{stage.index} {_shortened(stage.name)}" for stage in stages]
    # Measured in a wide font at hand; the page's own is no wider, as a rule.
    sizes = [(6.4 * len(name) + 4, 14.0) for name in names]
    obstacles = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    for x, span in zip(xs, spans, strict=True):
        (left, bottom), (_, top) = axes.transData.transform([(x, span[0]), (x, span[1])])
        obstacles.append((left - 1, bottom, left + 1, top))
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        steps = max(2, int(math.hypot(x1 - x0, y1 - y0) / 6))
        for t in np.linspace(0, 1, steps):
            x, y = x0 + t * (x1 - x0), y0 + t * (y1 - y0)
            obstacles.append((x - 1, y - 1, x + 1, y + 1))
    frame = axes.get_window_extent()
    bounds = (frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 16)
    boxes = place_labels(points, sizes, bounds, obstacles)
    for name, point, box in zip(names, points, boxes, strict=True):
        _draw_label(axes, name, point, box)


def _draw_label(axes: Any, name: str, point: tuple[float, ...], box: Box) -> None:
    x, y = point
    nearest = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
    away = math.hypot(x - nearest[0], y - nearest[1])
    align = "left" if box[0] > x else "right" if box[2] < x else "center"
    at = {"left": box[0] + 1, "right": box[2] - 1, "center": (box[0] + box[2]) / 2}[align]
    if away > 12:
        line = axes.transData.inverted().transform([point, nearest])
        axes.plot(line[:, 0], line[:, 1], color=_MUTED, lw=0.7, zorder=2)
    axes.annotate(
        name,
        (at, (box[1] + box[3]) / 2),
        xycoords="figure pixels",
        ha=align,
        va="center_baseline",
        color=_INK,
        parse_math=False,
        zorder=4,
    )


def _corner_hint(axes: Any, words: str) -> None:
    axes.annotate(
        words,
        (0, 1),
        xycoords="axes fraction",
        xytext=(3, -3),
        textcoords="offset points",
        va="top",
        color=_MUTED,
        fontsize=10,
        style="italic",
    )


def _x_axis(axes: Any, xs: Sequence[float], quantity: str) -> None:
    low, high = min(xs), max(xs)
    wide = high / low > 8
    if wide:
        axes.set_xscale("log")
        room = (high / low) ** 0.22
        axes.set_xlim(low / room, high * room)
    else:
        room = 0.2 * (high - low) or 0.5 * high
        axes.set_xlim(max(0.0, low - room), high + room)
    left, right = axes.get_xlim()
    ticks = _ticks(left, right, wide=wide, binary=quantity == "bytes")
    show = units.format_bytes if quantity == "bytes" else units.format_ms
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _plain(show(x))))
    words = "file size" if quantity == "bytes" else "median latency"
    scale = ", logarithmic" if wide else ""
    axes.tick_params(axis="x", length=3)
    axes.set_xlabel(f"{words}{scale}", color=_MUTED, fontsize=10.5, labelpad=5)


def _ticks(low: float, high: float, wide: bool, binary: bool) -> list[float]:
    """Round numbers of the unit that is shown: 1, 2 or 5 times a power of ten, of KiB for bytes."""
    unit = 1024.0 ** math.floor(math.log(max(high, 1), 1024)) if binary and not wide else 1.0
    if not wide:
        inside = [t * unit for t in MaxNLocator(5).tick_values(low / unit, high / unit)]
        return [t for t in inside if low <= t <= high]
    powers = [1024.0**k for k in range(5)] if binary else [1.0]
    decades = range(3) if binary else range(-6, 7)
    every = [f * 10.0**k * p for p in powers for k in decades for f in (1, 2, 5)]
    every = [t for t in every if low <= t <= high]
    for keep in ((1, 2, 5), (1, 5), (1,)):
        some = [t for t in every if _leading(t, powers) in keep]
        if len(some) <= 6:
            break
    return some or every


def _leading(tick: float, powers: Sequence[float]) -> int:
    unit = max((p for p in powers if p <= tick), default=1.0)
    return int(f"{tick / unit:e}"[0])


def _plain(label: str) -> str:
    """`1.00 MiB` as a tick reads `1 MiB`."""
    return re.sub(r"(\.\d*?)0+(?=\D|$)", lambda m: "" if m[1] == "." else m[1], label)


def _percent_tick(value: float, _: Any) -> str:
    return f"{100 * value:.4g}%"


def _end_labels(axes: Any, ends: Sequence[tuple[str, str, float]]) -> None:
    """Names the lines at their last value, moved apart where they would touch."""
    low, high = axes.get_ylim()
    gap = 0.11 * (high - low)
    heights = [value for _, _, value in ends]
    if len(ends) == 2 and abs(heights[0] - heights[1]) < gap:
        middle = sum(heights) / 2
        sign = 1 if heights[0] >= heights[1] else -1
        heights = [middle + sign * gap / 2, middle - sign * gap / 2]
    for (label, colour, _), height in zip(ends, heights, strict=True):
        axes.annotate(
            label,
            (1, (height - low) / ((high - low) or 1)),
            xycoords="axes fraction",
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=10,
            annotation_clip=False,
        )


def _dress(axes: Any) -> None:
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.tick_params(color=_LINE, labelcolor=_MUTED, labelsize=10, length=0, pad=5)
    axes.grid(axis="y", color=_LINE, lw=0.8)
    axes.set_axisbelow(True)


def _shortened(name: str, limit: int = 24) -> str:
    line = " ".join(name.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


@contextlib.contextmanager
def _drawing(salt: str) -> Iterator[None]:
    """matplotlib as it comes, for the length of one plot; the caller's settings return after."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A glyph that the measuring font lacks is drawn by the page's font all the same.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": salt})
        yield


def _svg(figure: Figure, spoken: str) -> str:
    figure.patch.set_visible(False)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=_METADATA)
    whole = stream.getvalue()
    body = whole[whole.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    # Names of groups repeat from plot to plot, and comments repeat the labels.
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"\s*/>', "", body)
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
    body = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", body)
    for stand_in, (variable, colour) in _COLOURS.items():
        body = body.replace(f": {stand_in}", f": var({variable}, {colour})")
    head = re.match(r'<svg[^>]*width="([\d.]+)pt" height="([\d.]+)pt"[^>]*>', body)
    if head is None:
        raise RuntimeError("matplotlib wrote an SVG of a form that tfcomp does not know.")
    width, height = head[1], head[2]
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'class="plot" role="img" aria-label="{escape(spoken)}" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif">'
    )
    body = opening + body[head.end() :]
    return re.sub(r"\n\s*\n+", "\n", body).strip()
