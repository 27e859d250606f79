"""The table and plot of the VGG on CIFAR-10, from the results.

    python -m benchmarks.pruning.cifar_vgg_figures

Writes docs/pruning_vgg.svg, and into docs/pruning.md what stands between `<!-- vgg -->` and its
end.
"""

from __future__ import annotations

import statistics
from typing import Any

import matplotlib as mpl
from absl import app
from matplotlib import pyplot

from benchmarks import results
from benchmarks.distillation import cifar
from benchmarks.pages import DOCS, put
from benchmarks.pruning import cifar_vgg
from benchmarks.pruning.cifar_vgg import CUTS, METHODS, NAME, RECIPE, RUNS, Run
from tfcomp.files import replacing

PLOT = DOCS / "pruning_vgg.svg"
SEEDS = range(3)
TITLES = {
    "dense": "not cut",
    "slimming": "network slimming",
    "hrank": "HRank",
    "taylor": "Taylor",
    "l1": "L1 norm",
    "fpgm": "FPGM",
    "apoz": "APoZ",
    "random": "random, the control",
}
Rows = dict[Run, dict[int, dict[str, Any]]]


def found() -> Rows:
    """What has been found, by run and seed."""
    rows: Rows = {}
    for run in RUNS:
        for seed in SEEDS:
            if (saved := cifar_vgg.stored(run, seed)) is not None:
                rows.setdefault(run, {})[seed] = saved
    return rows


def differences(rows: Rows, run: Run) -> list[float]:
    """Points of accuracy over the control at the same cut, for each seed that both have."""
    control = rows.get(Run("random", run.cut), {})
    return [
        100 * (of["after"] - control[seed]["after"])
        for seed, of in rows[run].items()
        if seed in control
    ]


def table(rows: Rows) -> str:
    """Accuracies before and after training on, and what is left."""
    lines = [
        "| cut | method | compared | MACs left | parameters left | before, % | after, % | "
        "over random | seeds |",
        "|--:|---|---|--:|--:|--:|--:|---|--:|",
    ]
    for run, seeds in rows.items():
        cells = [f"{100 * run.cut:.0f} %", TITLES[run.method]]
        cells.append("all layers" if run.method in cifar_vgg.GLOBAL else "in layers")
        if not run.cut:
            cells[-1] = "–"
        for key in ("macs", "parameters"):
            cells.append(f"{100 * statistics.mean(seed[key] for seed in seeds.values()):.1f} %")
        for key in ("before", "after"):
            cells.append(f"{100 * statistics.mean(seed[key] for seed in seeds.values()):.2f}")
        shown = run.cut and run.method != "random"
        each = ", ".join(f"{points:+.2f}" for points in differences(rows, run)) if shown else "–"
        lines.append(f"| {' | '.join([*cells, each or '–', str(len(seeds))])} |")
    return "\n".join([*lines, "", *_words(rows)])


def _words(rows: Rows) -> list[str]:
    """How it was measured, what did not beat random, and what is missing."""
    path = next((results.FOLDER / NAME).glob("*.json"))
    saved = results.load(f"{NAME}/{path.stem}")
    cpu = "" if saved is None else f" {saved['hardware']['cpu']}."
    trained = [
        100 * one["trained_accuracy"]
        for run, seeds in rows.items()
        if run == Run("slimming", CUTS[0])
        for one in seeds.values()
    ]
    whole = f" ({statistics.mean(trained):.2f} % uncut)" if trained else ""
    dense = next(iter(next(iter(rows.values())).values()))
    lines = [
        f"A VGG of {dense['dense_parameters']:,} parameters and {dense['dense_macs'] / 1e6:.1f} M "
        f"multiply-adds, trained for {RECIPE.epochs} epochs on 10 classes of "
        f"{cifar.IMAGES_PER_CLASS:,} images, mirrored and shifted; for network slimming with "
        f"λ = {RECIPE.strength:g} on the scales{whole}. Cut at once by "
        "`shrink(budget=Budget(macs=…))`, and trained on "
        f"for {RECIPE.tuning_epochs} epochs, as is the network that is not cut. Accuracy on the "
        "10,000 test images, before and after that; points over random by seed, paired. HRank, "
        f"Taylor and APoZ see {RECIPE.images} training images. Nothing was chosen by results. One "
        f"core,{cpu}",
        "",
    ]
    for cut in CUTS:
        behind = [
            TITLES[run.method]
            for run in rows
            if run.cut == cut
            and run.method != "random"
            and (points := differences(rows, run))
            and not (statistics.mean(points) > 0 and all(point > 0 for point in points))
        ]
        if behind:
            words = f"At {100 * cut:.0f} % not better than random on every seed: "
            lines += [f"{words}{', '.join(behind)}.", ""]
    missing = [
        f"{run.name}-{seed}" for seed in SEEDS for run in RUNS if seed not in rows.get(run, {})
    ]
    lines += [f"Not yet run: {', '.join(missing)}."] if missing else []
    return lines


def draw(rows: Rows) -> None:
    """Accuracy of each method and seed, before and after, one plot for each cut."""
    with mpl.rc_context({"svg.hashsalt": "vgg"}):
        figure, both = pyplot.subplots(
            1, len(CUTS), figsize=(8, 3), sharex=True, sharey=True, layout="constrained"
        )
        dense = [one["after"] for one in rows.get(Run("dense"), {}).values()]
        for axes, cut in zip(both, CUTS, strict=True):
            for place, method in enumerate(METHODS):
                seeds = rows.get(Run(method, cut), {}).values()
                for key, style, color in (("before", "o", "0.7"), ("after", "o", "#1f6f8b")):
                    values = [100 * one[key] for one in seeds]
                    axes.plot(values, [place] * len(values), style, color=color, label=key)
            if dense:
                mean = 100 * statistics.mean(dense)
                axes.axvline(mean, color="0.1", lw=1, ls="--", label="not cut")
            axes.set_title(f"{100 * cut:.0f} % of the multiply-adds cut", fontsize=9)
            axes.set(xlabel="test accuracy, %")
            axes.grid(axis="x", color="0.9")
            axes.set_axisbelow(True)
        both[0].set_yticks(range(len(METHODS)), [TITLES[method] for method in METHODS])
        both[0].invert_yaxis()
        handles, labels = both[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        both[0].legend(unique.values(), unique.keys(), frameon=False, fontsize=8)
        with replacing(PLOT) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def main(_: list[str]) -> None:
    rows = found()
    if not rows:
        print("There are no results yet.")
        return
    draw(rows)
    image = f"![Accuracy of each method, before and after training on]({PLOT.name})"
    parts = ["## A small VGG on CIFAR-10", table(rows), image]
    put(DOCS / "pruning.md", "vgg", "\n\n".join(parts))


if __name__ == "__main__":
    app.run(main)
