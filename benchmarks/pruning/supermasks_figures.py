"""The table and plot of the supermasks, from the results.

    python -m benchmarks.pruning.supermasks_figures

Writes docs/pruning_supermasks.svg, and into docs/pruning.md what stands between the comments
`<!-- supermasks -->` and `<!-- /supermasks -->`.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import matplotlib as mpl
from absl import app
from matplotlib import pyplot

from benchmarks import results
from benchmarks.pages import DOCS, put
from benchmarks.pruning.supermasks import CRITERIA_RUN, DRAWS, NAME, PAPER, TRAINED
from tfcomp.files import replacing

PAGE = DOCS / "pruning.md"
PLOT = DOCS / "pruning_supermasks.svg"
WEIGHTS = {"initial": "initial weights", "signed_constant": "signed constants"}
# The criteria that the paper's figure of supermasks sets apart; all others are grey.
COLOURS = {
    "large_final_same_sign": "#b23a48",
    "magnitude_increase_same_sign": "#d98324",
    "large_final": "#1f6f8b",
    "magnitude_increase": "#5b8c5a",
    "large_final_diff_sign": "#6a4c93",
    "random": "0.1",
}


def found(name: str) -> list[dict[str, Any]]:
    """What the finished seeds of a run have saved."""
    paths = sorted((results.FOLDER / NAME).glob(f"{name}-[0-9]*.json"))
    saved = [results.load(f"{NAME}/{path.stem}") for path in paths]
    return [one for one in saved if one is not None]


def best(rows: dict[str, list[dict[str, float]]]) -> tuple[str, dict[str, float]]:
    """The criterion and share that are best on held-out images."""
    pairs = [(name, row) for name, shares in rows.items() for row in shares]
    return max(pairs, key=lambda pair: pair[1]["held_out"])


def cells_of_criteria(seeds: list[dict[str, Any]]) -> list[list[str]]:
    """A row for each kind of weights: the best criterion, chosen on held-out images."""
    lines = []
    for kept, paper in PAPER.items():
        chosen = [best(seed["results"][kept]) for seed in seeds]
        errors = [row["test"] for _, row in chosen]
        names = ", ".join(sorted({f"`{name}`" for name, _ in chosen}))
        share = 100 * statistics.mean(row["sparsity"] for _, row in chosen)
        lines.append([f"{names}, {WEIGHTS[kept]}", f"{share:.0f} %", f"{paper:g}", *_cells(errors)])
    return lines


def cells_of_trained() -> list[list[str]]:
    """A row for each kind of trained masks."""
    lines = []
    for run in TRAINED:
        seeds = [one["results"] for one in found(run.name)]
        if not seeds:
            continue
        title = f"trained, {WEIGHTS[run.kept]}" + (", rescaled" if run.rescale else "")
        share = 100 * statistics.mean(seed["sparsity_drawn"] for seed in seeds)
        drawn = [seed["drawn"] for seed in seeds]
        likeliest = statistics.mean(seed["likeliest"] for seed in seeds)
        lines.append(
            [title, f"{share:.0f} %", f"{run.paper:g}", *_cells(drawn), f"{likeliest:.2f}"]
        )
    return lines


def _cells(each: list[float]) -> list[str]:
    return [f"{statistics.mean(each):.2f}", ", ".join(f"{one:.2f}" for one in each)]


def table(seeds: list[dict[str, Any]]) -> str:
    """Test accuracies beside the paper's."""
    lines = [
        "| masks | removed | paper, % | accuracy, % | each seed | likeliest mask, % |",
        "|---|--:|--:|--:|---|--:|",
    ]
    for cells in [*cells_of_criteria(seeds), *cells_of_trained()]:
        lines.append(f"| {' | '.join([*cells, '–'][:6])} |")
    budget = seeds[0]["budget"]
    rates = ", ".join(f"{rate:g}" for rate in sorted({run.rate for run in TRAINED}))
    dense = statistics.mean(seed["results"]["dense_test"] for seed in seeds)
    return "\n".join(
        [
            *lines,
            "",
            "LeNet-300-100 on MNIST; no weight is ever trained. By criteria: from the weights "
            f"before and after {budget['dense_epochs']} epochs of Adam, which reach {dense:.2f} %; "
            "criterion and share are the best on 10,000 held-out training images, where the paper "
            f"takes the best on the test set. Trained: {budget['mask_epochs']} epochs (the "
            f"authors' command has 2000) of batches of {budget['mask_batch']}, SGD with "
            f"momentum, the rate chosen on the held-out images ({rates}) and "
            f"falling as a half cosine; mean of {DRAWS} drawn masks, and the likeliest one. "
            f"10,000 test images. One core, {seeds[0]['hardware']['cpu']}.",
        ]
    )


def draw(seeds: list[dict[str, Any]]) -> None:
    """Accuracy against the share that is left, all criteria."""
    with mpl.rc_context({"svg.hashsalt": "supermasks"}):
        figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
        for (kept, title), axes in zip(WEIGHTS.items(), panels, strict=True):
            rows = [seed["results"][kept] for seed in seeds]
            for criterion in sorted(rows[0], key=lambda name: name in COLOURS):
                columns = list(zip(*(row[criterion] for row in rows), strict=True))
                left = [100 * (1 - column[0]["sparsity"]) for column in columns]
                tests = [[one["test"] for one in column] for column in columns]
                colour = COLOURS.get(criterion, "0.8")
                label = criterion if criterion in COLOURS else "other criteria"
                axes.plot(left, [statistics.mean(t) for t in tests], color=colour, label=label)
                if criterion in COLOURS:
                    low, high = [min(t) for t in tests], [max(t) for t in tests]
                    axes.fill_between(left, low, high, color=colour, alpha=0.15, lw=0)
            for rescale, style in ((False, "--"), (True, ":")):
                run = next(r for r in TRAINED if (r.kept, r.rescale) == (kept, rescale))
                ones = [one["results"]["drawn"] for one in found(run.name)]
                if ones:
                    name = f"trained masks{', rescaled' if rescale else ''}"
                    axes.axhline(statistics.mean(ones), color="0.3", ls=style, lw=1, label=name)
            axes.set(title=title, xlabel="weights left, % (logarithmic)", xscale="log")
            axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
            axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
            axes.set_xticks([3, 5, 10, 20, 30, 40, 60])
            axes.invert_xaxis()
            axes.grid(color="0.92")
        panels[0].set_ylabel("test accuracy, %")
        lines = dict(
            itertools.chain.from_iterable(
                zip(*reversed(axes.get_legend_handles_labels()), strict=True) for axes in panels
            )
        )
        figure.legend(lines.values(), lines.keys(), loc="outside right", frameon=False, fontsize=8)
        with replacing(PLOT) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def main(_: list[str]) -> None:
    seeds = found(CRITERIA_RUN)
    if not seeds:
        print("There are no results yet.")
        return
    draw(seeds)
    image = f"![Accuracy of untrained weights under each mask]({PLOT.name})"
    put(PAGE, "supermasks", "\n\n".join([table(seeds), image]))
    print(PAGE)


if __name__ == "__main__":
    app.run(main)
