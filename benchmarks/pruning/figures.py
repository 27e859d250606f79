"""The table and plot of LeNets that are pruned, from the results.

    python -m benchmarks.pruning.figures

Writes docs/pruning_lenets.svg, and into docs/pruning.md what stands between the comments
`<!-- lenets -->` and `<!-- /lenets -->`.
"""

from __future__ import annotations

import statistics
from typing import Any

import matplotlib as mpl
from absl import app
from matplotlib import pyplot

from benchmarks import results
from benchmarks.pages import DOCS, put
from benchmarks.pruning import lenets, snip_protocol
from tfcomp.files import replacing

PAGE = DOCS / "pruning.md"
PLOT = DOCS / "pruning_lenets.svg"
TITLES = {
    "dense": "dense",
    "han": "pruned and retrained, by magnitude",
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "magnitude": "magnitude at initialisation",
    "random": "random",
}
SEEDS = 3
CHANCE = 88.0  # percent wrong, about what one class for all images gives
NETWORKS = {"lenet_300_100": "LeNet-300-100", "lenet_5": "LeNet-5"}


def found(run: lenets.Run) -> list[dict[str, Any]]:
    """What the finished seeds of a run have found."""
    paths = sorted((results.FOLDER / lenets.NAME).glob(f"{run.name}-[0-9]*.json"))
    saved = [results.load(f"{lenets.NAME}/{path.stem}") for path in paths]
    kept = [one for one in saved if one is not None]
    return [{**one["results"], "cpu": one["hardware"]["cpu"]} for one in kept]


def recipes_of(recipes: dict[str, lenets.Recipe]) -> str:
    """How long and how fast each network is trained."""
    return "; ".join(
        f"{NETWORKS[name]} {recipe.epochs} epochs at a rate of {recipe.rate:g} with a weight "
        f"decay of {recipe.weight_decay:g}"
        for name, recipe in recipes.items()
    )


def steps_of(recipe: lenets.Recipe) -> str:
    """Steps over the 60,000 training images."""
    return f"{recipe.epochs * 60_000 // lenets.BATCH:,}"


def _dense_error(rows: dict[lenets.Run, list[dict[str, Any]]]) -> str:
    """The mean error of LeNet-5 with dropout before it was pruned."""
    seeds = next((seeds for run, seeds in rows.items() if run.dropout), [])
    return f"{statistics.mean(seed['dense_error'] for seed in seeds):.2f}" if seeds else "–"


def _way(run: lenets.Run) -> str:
    """What a network has been trained with beside the images as they are."""
    return ", with dropout" if run.dropout else ", shifted images" if run.shifted else ""


def of_lenets(rows: dict[lenets.Run, list[dict[str, Any]]]) -> str:
    """Test errors beside the papers'."""
    lines = [
        "| network | method | sparsity | rate | paper, % | error, % | each seed |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for run, seeds in rows.items():
        errors = [seed["error"] for seed in seeds]
        each = ", ".join(f"{error:.2f}" for error in errors)
        lost = sum(bool(seed.get("collapsed")) for seed in seeds)
        each += f" (collapsed in {lost})" if lost else ""
        dead = sum(error > CHANCE for error in errors)
        each += f" (learns nothing in {dead})" if dead and not lost else ""
        paper = "–" if run.paper is None else f"{run.paper:g}"
        share, rate = f"{100 * run.sparsity:.1f} %", f"{run.recipe.rate:g}"
        method = TITLES[run.method] + _way(run)
        cells = [NETWORKS[run.network], method, share, rate, paper]
        lines.append(f"| {' | '.join([*cells, f'{statistics.mean(errors):.2f}', each])} |")
    one = lenets.RECIPES["lenet_5"]
    cpus = sorted({seed["cpu"] for seeds in rows.values() for seed in seeds})
    lines += [
        "",
        f"{recipes_of(lenets.RECIPES)}. Pruned and retrained: the trained network, "
        f"{one.rounds} rounds {one.round_epochs} epochs apart to {100 * lenets.HAN:.1f} %, and as "
        "many epochs again; with dropout before and behind LeNet-5's hidden layer, of "
        f"{' and '.join(f'{rate:g}' for rate in lenets.DROPOUT_RECIPE.dropout)} at first and "
        "√(1/12) of that while it is pruned (the dense network then has "
        f"{_dense_error(rows)} %). At initialisation: by the same recipe, and by one for sparse "
        f"networks: {recipes_of(lenets.SPARSE_RECIPES)}, images standardised; with shifted "
        "images by that recipe too, each image up to a pixel to a side, anew in each epoch, which "
        "the paper does not do. Rates and decays are the best of a few for SNIP on held-out "
        "training images; other criteria might want others. "
        "One batch of the training set, all kernels together, biases left; SynFlow in 100 rounds. "
        f"All by SGD with momentum in batches of {lenets.BATCH}; SNIP's authors train for 250,000 "
        f"steps, this is {' and '.join(steps_of(recipe) for recipe in lenets.RECIPES.values())}. "
        f"10,000 test images. One core, {' or '.join(cpus)}.",
    ]
    short = [
        f"{NETWORKS[run.network]} by {TITLES[run.method]} at {100 * run.sparsity:.0f} %"
        f"{f' and a rate of {run.recipe.rate:g}' if run.fast or run.shifted else ''}{_way(run)} "
        f"({statistics.mean(seed['error'] for seed in seeds):.2f}, paper {run.paper:g})"
        for run, seeds in rows.items()
        if run.paper
        and run.sparsity
        and statistics.mean(seed["error"] for seed in seeds) > run.paper
    ]
    if short:
        lines += ["", f"Short of the papers' figures: {', '.join(short)}."]
    lines += of_protocol()
    missing = [
        f"{run.name} ({SEEDS - len(rows.get(run, []))} of {SEEDS} seeds)"
        for run in lenets.RUNS
        if len(rows.get(run, [])) < SEEDS
    ]
    return "\n".join([*lines, *(["", f"Not yet run: {', '.join(missing)}."] if missing else [])])


def of_protocol() -> list[str]:
    """What SNIP's authors' program comes to, beside what they report."""
    said = []
    for share, paper in zip(snip_protocol.SHARES, (1.6, 2.4), strict=True):
        names = [snip_protocol.run_name(share, seed) for seed in range(SEEDS)]
        runs = [one["results"] for name in names if (one := results.load(name)) is not None]
        if runs:
            each = ", ".join(f"{run['error']:.2f}" for run in runs)
            last, best = (
                f"{statistics.mean(run[key] for run in runs):.2f}"
                for key in ("error", "best_of_last")
            )
            said.append(
                f"at {100 * share:.0f} % {last} ({each}; by the test set {best}; {paper:g})"
            )
    if not said:
        return []
    return [
        "",
        "SNIP on LeNet-300-100 as its authors' program trains it, step by step and without this "
        "library (`benchmarks.pruning.snip_protocol`: biases are scored and pruned too, weights "
        f"drawn anew, {snip_protocol.STEPS:,} steps): {'; '.join(said)}. In brackets each seed; "
        f"the least of the last {snip_protocol.CHECKPOINTS} checkpoints on the test set, which "
        "that program reports; and the paper's figure.",
    ]


def draw(rows: dict[lenets.Run, list[dict[str, Any]]]) -> None:
    """Each seed's error, and the paper's."""
    with mpl.rc_context({"svg.hashsalt": "lenets"}):
        figure, axes = pyplot.subplots(figsize=(7.5, 0.3 * len(rows) + 1), layout="constrained")
        names = []
        for place, (run, seeds) in enumerate(rows.items()):
            errors = [seed["error"] for seed in seeds]
            axes.plot(errors, [place] * len(errors), "o", color="#1f6f8b", label="each seed")
            if run.paper is not None:
                axes.plot(run.paper, place, "|", color="0.1", ms=14, mew=2, label="paper")
            share = f" {100 * run.sparsity:.0f} %" if run.sparsity else ""
            rate = f", rate {run.recipe.rate:g}" if run.fast or run.shifted else ""
            names.append(f"{NETWORKS[run.network]}, {TITLES[run.method]}{share}{rate}{_way(run)}")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(xlabel="test error, % (logarithmic)", xscale="log")
        axes.grid(axis="x", color="0.9", which="both")
        axes.set_axisbelow(True)
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axes.legend(unique.values(), unique.keys(), frameon=False, fontsize=8)
        with replacing(PLOT) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def main(_: list[str]) -> None:
    rows = {run: seeds for run in lenets.RUNS if (seeds := found(run))}
    if rows:
        draw(rows)
        image = f"![Test errors of each network]({PLOT.name})"
        parts = ["## LeNets on MNIST", of_lenets(rows), image]
        put(PAGE, "lenets", "\n\n".join(parts))
    print(PAGE)


if __name__ == "__main__":
    app.run(main)
