"""The table and the plot of peers, assistants, ensembles and generations, from the results.

    python -m benchmarks.distillation.peers_figures

Writes docs/distillation_peers.svg, and into docs/distillation.md what stands between the comments
`<!-- peers -->` and their end.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

import matplotlib as mpl
from absl import app
from matplotlib import pyplot

from benchmarks import results
from benchmarks.distillation import figures, peers
from tfcomp.files import replacing

PLOT = figures.DOCS / "distillation_peers.svg"
COLOR = "#1f6f8b"
Row = tuple[peers.Comparison, figures.Gap, float]


def rows(seeds: range) -> list[Row]:
    """Each comparison that has results, with its gap and the baseline's mean accuracy."""
    found = []
    for comparison in peers.COMPARISONS:
        pairs = peers.paired(comparison, seeds)
        if pairs:
            ours, theirs = (statistics.mean(side) for side in zip(*pairs, strict=True))
            gap = figures.Gap(ours, [a - b for a, b in pairs], 0.0)
            found.append((comparison, gap, theirs))
    return found


def table(found: list[Row]) -> str:
    """The comparisons, in Markdown."""
    lines = [
        "| what | accuracy, % | baseline, % | difference | | seeds |",
        "|---|--:|--:|--:|---|--:|",
    ]
    for comparison, gap, theirs in found:
        accuracy, difference, verdict = figures.cells(gap)
        cells = [comparison.title, accuracy, f"{theirs:.2f}", difference, verdict]
        lines.append(f"| {' | '.join(cells)} | {len(gap.points)} |")
    return "\n".join(lines)


def summary(seeds: range) -> str:
    """What was compared with what, and on which machine."""
    path = next((results.FOLDER / peers.NAME).glob("alone-*.json"))
    saved: dict[str, Any] = json.loads(path.read_text())
    budget, versions, cpu = saved["budget"], saved["versions"], saved["hardware"]["cpu"]
    runs = [peers.stored(run, seed) for run in peers.RUNS for seed in seeds]
    minutes = sum(found["core_seconds"] for found in runs if found is not None) / 60
    return (
        "The baseline is the student trained alone with the same first weights and batches; for "
        "the ensembles of peers and of generations it is one of as many students trained alone. "
        "The teachers of the same size are such students. 10,000 test images, differences paired "
        f"by seed, ± standard error; told apart beyond {figures.ERRORS:.0f} of them. Budget of "
        f"each network: {budget['epochs']} epochs of 10,000 training images in batches of "
        f"{budget['batch']}; {minutes:.0f} minutes of one core for all. {cpu}, no GPU; TensorFlow "
        f"{versions['tensorflow']}, Keras {versions['keras']}."
    )


def draw(found: list[Row]) -> None:
    """Differences with their standard errors and each seed's point."""
    mpl.rcParams["svg.hashsalt"] = "tfcomp"
    figure, axes = pyplot.subplots(figsize=(7.5, 0.3 * len(found) + 1.0), layout="constrained")
    for height, (_, gap, _) in enumerate(reversed(found)):
        axes.plot(gap.points, [height] * len(gap.points), ".", color=COLOR, alpha=0.35)
        axes.errorbar(gap.mean, height, xerr=gap.error, fmt="o", color=COLOR)
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(range(len(found)), [comparison.title for comparison, *_ in reversed(found)])
    axes.set_xlabel("test accuracy − that of the baseline, points (± standard error)")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    with replacing(PLOT) as temporary:
        figure.savefig(temporary, metadata={"Date": None})
    pyplot.close(figure)


def main(_: list[str]) -> None:
    """Draws what there is."""
    seeds = range(peers.FLAGS.seeds)
    found = rows(seeds)
    if not found:
        print("There are no results yet: run benchmarks.distillation.peers.")
        return
    draw(found)
    title = "## Peers, assistants, ensembles, generations"
    image = f"![Differences to the baselines]({PLOT.name})"
    figures.put("peers", "\n\n".join([title, table(found), summary(seeds), image]))
    print(figures.PAGE)


if __name__ == "__main__":
    app.run(main)
