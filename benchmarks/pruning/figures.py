"""The tables and plots of pruning, from the results.

    python -m benchmarks.pruning.figures

Writes docs/pruning_lenets.svg, docs/pruning_steps.svg and docs/pruning_masks.svg, and into
docs/pruning.md what stands between the comments `<!-- lenets -->`, `<!-- steps -->` and
`<!-- masks -->` and their ends.
"""

from __future__ import annotations

import statistics
from typing import Any

import matplotlib as mpl
from absl import app
from matplotlib import pyplot

from benchmarks import results
from benchmarks.pages import DOCS, put
from benchmarks.pruning import lenets
from tfcomp.files import replacing

PAGE = DOCS / "pruning.md"
PLOT = DOCS / "pruning_lenets.svg"
STEPS_PLOT = DOCS / "pruning_steps.svg"
MASKS_PLOT = DOCS / "pruning_masks.svg"
TITLES = {
    "dense": "dense",
    "han": "pruned and retrained, by magnitude",
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "magnitude": "magnitude at initialisation",
    "random": "random",
}
STEP_TITLES = {"mobile_net": "convolutional, 0.1 M weights", "dense_net": "dense, 20 M weights"}
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
        cells = [NETWORKS[run.network], TITLES[run.method], share, rate, paper]
        lines.append(f"| {' | '.join([*cells, f'{statistics.mean(errors):.2f}', each])} |")
    one = lenets.RECIPES["lenet_5"]
    cpus = sorted({seed["cpu"] for seeds in rows.values() for seed in seeds})
    lines += [
        "",
        f"{recipes_of(lenets.RECIPES)}. Pruned and retrained: the trained network, "
        f"{one.rounds} rounds {one.round_epochs} epochs apart to {100 * lenets.HAN:.1f} %, and as "
        "many epochs again. At initialisation: by the same recipe, and by one for sparse networks: "
        f"{recipes_of(lenets.SPARSE_RECIPES)}, images standardised. Rates and decays are the best "
        "of a few for SNIP on held-out training images; other criteria might want others. One "
        "batch of the training set, all kernels together, biases left; SynFlow in 100 rounds. All "
        f"by SGD with momentum in batches of {lenets.BATCH}; SNIP's authors train for 250,000 "
        f"steps, this is {' and '.join(steps_of(recipe) for recipe in lenets.RECIPES.values())}. "
        f"10,000 test images. One core, {' or '.join(cpus)}.",
    ]
    short = [
        f"{NETWORKS[run.network]} by {TITLES[run.method]} at {100 * run.sparsity:.0f} %"
        f"{f' and a rate of {run.recipe.rate:g}' if run.fast else ''} "
        f"({statistics.mean(seed['error'] for seed in seeds):.2f}, paper {run.paper:g})"
        for run, seeds in rows.items()
        if run.paper
        and run.sparsity
        and statistics.mean(seed["error"] for seed in seeds) > run.paper
    ]
    if short:
        lines += ["", f"Short of the papers' figures: {', '.join(short)}."]
    missing = [
        f"{run.name} ({SEEDS - len(rows.get(run, []))} of {SEEDS} seeds)"
        for run in lenets.RUNS
        if len(rows.get(run, [])) < SEEDS
    ]
    return "\n".join([*lines, *(["", f"Not yet run: {', '.join(missing)}."] if missing else [])])


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
            rate = f", rate {run.recipe.rate:g}" if run.fast else ""
            names.append(f"{NETWORKS[run.network]}, {TITLES[run.method]}{share}{rate}")
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


def steps(saved: dict[str, Any]) -> str:
    """Step times over the plain step's, by unit and scope."""
    groups = saved["results"]
    lines = [
        f"| unit, scope | {' | '.join(STEP_TITLES[name] for name in groups)} |",
        "|---|--:|--:|",
    ]
    first = next(iter(groups.values()))
    for key in first:
        cells = [
            f"{group[key]['ratio']:.3f} ({group[key]['low']:.3f}–{group[key]['high']:.3f})"
            for group in groups.values()
        ]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    budget = saved["budget"]
    lines += [
        "",
        "Time of a training step with masks set over that of the plain step: median and quartiles "
        f"of {budget['rounds']} rounds of {budget['steps']} steps, interleaved, with Adam. Reach: "
        f"≤ 1.02 on the convolutional network. {_over_control(first)} One core, "
        f"{saved['hardware']['cpu']}.",
    ]
    return "\n".join(lines)


def _over_control(group: dict[str, Any]) -> str:
    """What the control says of the reach."""
    control = group["A/A control"]["ratio"]
    above = {
        key: row["ratio"] / control
        for key, row in group.items()
        if key != "A/A control" and row["ratio"] / control > 1.02
    }
    listed = ", ".join(f"{key} {ratio:.3f}" for key, ratio in above.items())
    told = f"the reach is missed by {listed}" if listed else "the reach holds for all"
    return (
        f"The control of the plain step against itself, {control:.3f} there, says how much of that "
        f"is the order of measuring; over it, {told}."
    )


def masks(saved: dict[str, Any]) -> str:
    """Seconds and bytes of an update."""
    groups = saved["results"]
    names = [f"{group['weights'] / 1e6:.1f} M" for group in groups.values()]
    lines = [f"| | {' | '.join(names)} | bytes a weight |", f"|---|{'--:|' * (len(names) + 1)}"]
    for key in next(iter(groups.values()))["rows"]:
        seconds = [f"{group['rows'][key]['seconds']:.4f}" for group in groups.values()]
        last = list(groups.values())[-1]
        extra = last["rows"][key]["extra_bytes"] / last["weights"]
        lines.append(f"| {key} | {' | '.join(seconds)} | {extra:.1f} |")
    rows = list(groups.values())[-1]["rows"]
    ratio = rows["weights, global"]["seconds"] / rows["numpy.partition"]["seconds"]
    lines += [
        "",
        "Seconds of an update of all masks, by the number of weights, and the most memory beyond "
        "what was held before, for the largest. Global update of single weights over "
        f"`numpy.partition` of the same magnitudes, at {names[-1]}: {ratio:.2f} (reach: ≤ 3). "
        f"{_growth(groups)} One core, {saved['hardware']['cpu']}.",
    ]
    return "\n".join(lines)


def _growth(groups: dict[str, Any]) -> str:
    """How much longer an update takes with more weights, over all sizes and the last two."""
    sizes = list(groups.values())
    said = []
    for first, last in ((sizes[0], sizes[-1]), (sizes[-2], sizes[-1])):
        more = last["weights"] / first["weights"]
        times = [
            last["rows"][key]["seconds"] / row["seconds"]
            for key, row in first["rows"].items()
            if key != "numpy.partition"
        ]
        floor = [one["rows"]["numpy.partition"]["seconds"] for one in (last, first)]
        said.append(
            f"from {first['weights'] / 1e6:.1f} M on, {more:.0f} times the weights, it takes "
            f"{min(times):.1f} to {max(times):.1f} times as long (`numpy.partition` "
            f"{floor[0] / floor[1]:.1f})"
        )
    return (
        f"Growth up to {sizes[-1]['weights'] / 1e6:.0f} M: {'; '.join(said)}. The reach is to grow "
        "no faster than the weights: what takes more times as long than that misses it."
    )


def draw_steps(saved: dict[str, Any]) -> None:
    """Ratios of step times with their quartiles."""
    groups = saved["results"]
    names = list(next(iter(groups.values())))
    with mpl.rc_context({"svg.hashsalt": "steps"}):
        figure, axes = pyplot.subplots(figsize=(7.5, 0.32 * len(names) + 1), layout="constrained")
        for (name, group), color, shift in zip(
            groups.items(), ("#1f6f8b", "#d1603d"), (-0.12, 0.12), strict=True
        ):
            middle = [group[key]["ratio"] for key in names]
            low = [group[key]["ratio"] - group[key]["low"] for key in names]
            high = [group[key]["high"] - group[key]["ratio"] for key in names]
            places = [place + shift for place in range(len(names))]
            axes.errorbar(
                middle, places, xerr=[low, high], fmt="o", color=color, label=STEP_TITLES[name]
            )
        axes.axvline(1, color="0.3", linewidth=1)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("time of a step with masks over that of the plain step")
        axes.grid(axis="x", color="0.9")
        axes.legend(frameon=False, fontsize=8)
        with replacing(STEPS_PLOT) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def draw_masks(saved: dict[str, Any]) -> None:
    """Seconds of an update by the number of weights."""
    groups = list(saved["results"].values())
    weights = [group["weights"] for group in groups]
    with mpl.rc_context({"svg.hashsalt": "masks"}):
        figure, axes = pyplot.subplots(figsize=(7.5, 4.2), layout="constrained")
        for index, key in enumerate(groups[0]["rows"]):
            seconds = [group["rows"][key]["seconds"] for group in groups]
            is_floor = key == "numpy.partition"
            style = "k-" if is_floor else f"C{index // 2}{'-' if index % 2 else '--'}"
            axes.loglog(weights, seconds, style, marker="o", ms=3, lw=1.2, label=key)
        floor = groups[-1]["rows"]["numpy.partition"]["seconds"]
        even = [floor * count / weights[-1] for count in weights]
        axes.loglog(weights, even, ":", color="0.5", label="in proportion to the weights")
        axes.set(xlabel="weights", ylabel="seconds of an update")
        axes.grid(color="0.9")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        with replacing(MASKS_PLOT) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def main(_: list[str]) -> None:
    rows = {run: seeds for run in lenets.RUNS if (seeds := found(run))}
    if rows:
        draw(rows)
        image = f"![Test errors of each network]({PLOT.name})"
        parts = ["## LeNets on MNIST", of_lenets(rows), image]
        put(PAGE, "lenets", "\n\n".join(parts))
    for marker, title, name, table, plot, path in (
        ("steps", "What a step costs", "pruning_step_times", steps, draw_steps, STEPS_PLOT),
        (
            "masks",
            "What an update of the masks costs",
            "pruning_mask_update",
            masks,
            draw_masks,
            MASKS_PLOT,
        ),
    ):
        saved = results.load(name)
        if saved is not None:
            plot(saved)
            put(PAGE, marker, f"## {title}\n\n{table(saved)}\n\n![{title}]({path.name})")
    print(PAGE)


if __name__ == "__main__":
    app.run(main)
