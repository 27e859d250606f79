"""The table and plot of measured speed, from the results.

    python -m benchmarks.pruning.real_speed_figures

Writes docs/pruning_speed.svg, and into docs/pruning.md what stands between `<!-- speed -->` and
its end.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from absl import app
from matplotlib import pyplot

from benchmarks import results
from benchmarks.pages import DOCS, put
from benchmarks.pruning import real_speed
from benchmarks.pruning.real_speed import DTYPES, FULL, NAME, RUNS, SMALL, Run
from tfcomp.files import replacing

PLOT = DOCS / "pruning_speed.svg"
TITLES = {"mobilenet_v2": "MobileNetV2", "resnet50": "ResNet50", "vgg16": "VGG16"}
REACH = 0.7
Rows = dict[Run, dict[str, Any]]


def table(rows: Rows, full: bool) -> str:
    """Speed over multiply-adds saved, for images of full size or smaller ones."""
    lines = [
        "| network | multiples of | MACs, 10⁶ | float32, ms | (t₀/t₁)/(MAC₀/MAC₁) | int8, ms | "
        "(t₀/t₁)/(MAC₀/MAC₁) | A/A controls |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for run in rows:
        pair = [other for other in RUNS if other.model == run.model]
        both = [rows.get(other) for other in pair]
        if (run.size == FULL) != full or run != next(other for other in pair if other in rows):
            continue
        macs, dense = rows[run]["macs"], rows[run]["dense_macs"]
        share = macs / dense
        left = f"{dense / 1e6:,.0f} → {macs / 1e6:,.0f} ({100 * share:.1f} %)"
        cells = [f"{TITLES[run.network]}, {run.size} px", str(run.round_to), left]
        for of in both:
            if of is None:
                cells += ["–", "–"]
                continue
            ends = f"{share / of['cut']['high']:.2f}–{share / of['cut']['low']:.2f}"
            before, after = of["cut"]["baseline_ms"], of["cut"]["candidate_ms"]
            cells += [
                f"{before:#.3g} → {after:#.3g} (×{of['speed_up']:.2f})",
                f"{of['efficiency']:.2f} ({ends})",
            ]
        cells.append(", ".join(f"{of['control']['ratio']:.3f}" if of else "–" for of in both))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def words(rows: Rows) -> str:
    """How it was measured, and what falls short."""
    cpu, rounds = _machine(rows, FULL)
    half = [run for run in rows if run.cut == 0.5 and run.size == FULL]
    short = [run for run in half if rows[run]["efficiency"] < REACH]
    fall = ", ".join(
        f"{TITLES[run.network]} as {run.dtype} in multiples of {run.round_to} "
        f"({rows[run]['efficiency']:.2f})"
        for run in short
    )
    lines = [
        "Cut by `shrink(budget=Budget(macs=…))`, by L1 norms, the same share in each layer; "
        "He's random weights; VGG16 with average pooling and one dense layer for its head. "
        f"LiteRT, one thread: medians and quartiles of {rounds} rounds, each file in turn with the "
        f"uncut one and with a second interpreter of that one, the control. {cpu}.",
        f"Reach: ≥ {REACH} at 50 %, in {len(half) - len(short)} of {len(half)}"
        + (f"; not {fall}." if short else "."),
        _missing(rows, FULL),
    ]
    return "\n\n".join(filter(None, lines))


def of_smaller(rows: Rows) -> str:
    """The same for smaller images."""
    cpu, _ = _machine(rows, 0)
    text = (
        f"Smaller images, on another processor, {cpu}. There a whole VGG16 takes 3 ms as int8, a "
        "fourteenth of what it takes as float32; what is left then falls by less than the "
        f"multiply-adds. {_missing(rows, 0)}"
    )
    return "\n\n".join([text, table(rows, False)])


def _machine(rows: Rows, size: int) -> tuple[str, int]:
    """The processor and the rounds of the images of full size, or of the smaller ones."""
    run = next(run for run in rows if (run.size == FULL) == (size == FULL))
    saved = results.load(f"{NAME}/{run.name}")
    assert saved is not None
    return saved["hardware"]["cpu"], saved["budget"]["rounds"]


def _missing(rows: Rows, size: int) -> str:
    left = [r.name for r in RUNS if r not in rows and (r.size == FULL) == (size == FULL)]
    return f"Not run: {', '.join(left)}." if left else ""


def draw(rows: Rows) -> None:
    """How much faster, over how many multiply-adds are saved; one plot for each type."""
    with mpl.rc_context({"svg.hashsalt": "speed"}):
        figure, both = pyplot.subplots(
            1, len(DTYPES), figsize=(8, 3.4), sharex=True, sharey=True, layout="constrained"
        )
        most = max(of["dense_macs"] / of["macs"] for of in rows.values())
        colours = dict(zip(SMALL, ("#1f6f8b", "#d1603d", "#5b8c3a"), strict=True))
        for axes, dtype in zip(both, DTYPES, strict=True):
            axes.plot([1, most], [1, most], color="0.6", lw=1, label="as multiply-adds")
            # From where the reach is no slower than the whole network.
            axes.plot([1 / REACH, most], [1, REACH * most], ":", color="0.6", lw=1, label="reach")
            for name in SMALL:
                for multiple, line in zip(real_speed.ROUNDINGS, ("o--", "s-"), strict=True):
                    points = [
                        (of["dense_macs"] / of["macs"], of["speed_up"])
                        for run, of in rows.items()
                        if (run.network, run.size, run.dtype, run.round_to)
                        == (name, FULL, dtype, multiple)
                    ]
                    label = TITLES[name] + (f", by {multiple}" if multiple > 1 else "")
                    axes.plot(
                        *zip((1, 1), *points, strict=True),
                        line,
                        ms=4,
                        color=colours[name],
                        label=label,
                    )
            axes.set(title=f"{dtype}, {FULL} pixels", xlabel="MAC₀/MAC₁")
            axes.grid(color="0.9")
            axes.set_axisbelow(True)
        both[0].set_ylabel("t₀/t₁")
        both[0].legend(frameon=False, fontsize=7)
        with replacing(PLOT) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def main(_: list[str]) -> None:
    rows = {run: found for run in RUNS if (found := real_speed.stored(run)) is not None}
    if not rows:
        raise SystemExit("Nothing was measured: python -m benchmarks.pruning.real_speed")
    draw(rows)
    image = f"![Measured speed over multiply-adds saved]({PLOT.name})"
    parts = ["## Real speed", table(rows, True), words(rows), image, of_smaller(rows)]
    put(DOCS / "pruning.md", "speed", "\n\n".join(parts))


if __name__ == "__main__":
    app.run(main)
