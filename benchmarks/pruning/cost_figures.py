"""The tables and plots of what steps with masks and updates of the masks cost, from the results.

    python -m benchmarks.pruning.cost_figures

Writes docs/pruning_steps.svg and docs/pruning_masks.svg, and into docs/pruning.md what stands
between the comments `<!-- steps -->` and `<!-- masks -->` and their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import matplotlib as mpl
from absl import app
from matplotlib import pyplot

from benchmarks import results
from benchmarks.pages import DOCS, put
from benchmarks.pruning import mask_update, step_times
from tfcomp.files import replacing

PAGE = DOCS / "pruning.md"
STEPS_PLOT = DOCS / "pruning_steps.svg"
MASKS_PLOT = DOCS / "pruning_masks.svg"
TITLES = {"mobile_net": "convolutional, 0.1 M weights", "dense_net": "dense, 20 M weights"}
FLOOR, CONTROL = mask_update.FLOOR, step_times.CONTROL
# As far as the size of pages and the system's own count of them, in parts, let bytes be known.
EXACT_FROM = 10e6
# By how much a control may be off for its ratios to be told to a hundredth.
TRUSTED = 0.005
Groups = list[dict[str, Any]]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown, all columns but the first to the right."""
    titles = list(head)
    lines = [f"| {' | '.join(titles)} |", f"|---|{'--:|' * (len(titles) - 1)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def steps(saved: dict[str, Any]) -> str:
    """Step times over the plain step's, by unit and scope."""
    groups, budget = saved["results"], saved["budget"]
    rows = [
        [key, *(_ratio(group[key]) for group in groups.values())]
        for key in next(iter(groups.values()))
    ]
    rounds = " and ".join(str(budget["rounds"][name]) for name in groups)
    text = (
        "Time of a training step with masks set over that of the plain step, with Adam: median and "
        f"quartiles of {rounds} rounds of {budget['steps']} steps, interleaved. The control is a "
        "second plain model. TensorFlow with one thread on one core; the processor's time, so that "
        "other work on the machine counts for less. Plain steps take "
        f"{' and '.join(_plain_step(group) for group in groups.values())} ms. "
        f"{_of_reach(groups)} {saved['hardware']['cpu']}."
    )
    return f"{_table(['unit, scope', *(TITLES[name] for name in groups)], rows)}\n\n{text}"


def _ratio(row: dict[str, float]) -> str:
    return f"{row['ratio']:.3f} ({row['low']:.3f}–{row['high']:.3f})"


def _plain_step(group: dict[str, Any]) -> str:
    return f"{group[CONTROL]['baseline_ms']:.0f}"


def _of_reach(groups: dict[str, Any]) -> str:
    """What holds of the reach, and how far the controls let it be told."""
    said = []
    for name, group in groups.items():
        reach, off = step_times.REACH[name], abs(group[CONTROL]["ratio"] - 1)
        ratios = {key: row["ratio"] for key, row in group.items() if key != CONTROL}
        if reach is not None:
            above = [f"{key} {ratio:.3f}" for key, ratio in ratios.items() if ratio > reach]
            told = f"missed by {', '.join(above)}" if above else "which all hold"
            said.append(f"Reach: ≤ {reach:.2f} on the convolutional network, {told}.")
        trust = "" if off <= TRUSTED else ", more than half a percent: not to be trusted to less"
        said.append(f"The control, {TITLES[name]}, is off by {off:.3f}{trust}.")
    return " ".join(said)


def masks(saved: dict[str, Any]) -> str:
    """Seconds and bytes of an update."""
    groups = list(saved["results"].values())
    names = [f"{group['weights'] / 1e6:.1f} M" for group in groups]
    keys = list(groups[0]["rows"])
    seconds = [[key, *(f"{group['rows'][key]['seconds']:.4f}" for group in groups)] for key in keys]
    memory = [[key, *(_bytes(group, key) for group in groups)] for key in keys]
    rows = groups[-1]["rows"]
    ratio = rows["weights, global"]["seconds"] / rows[FLOOR]["seconds"]
    parts = [
        _table(["seconds", *names], seconds),
        "An update of all masks, by the number of weights: the processor's seconds, medians of "
        f"{saved['budget']['repeats']}. Global update of single weights over `numpy.partition` of "
        f"the same magnitudes, at {names[-1]}: {ratio:.2f} (reach: ≤ 3). {_growth(groups)} "
        f"{_system(groups)} One core, {saved['hardware']['cpu']}.",
        _table(["bytes a weight", *names], memory),
        "The most memory beyond what the process held before: of all of it, TensorFlow's copies of "
        "masks and weights included, and in brackets of NumPy's arrays alone. 4 of these are the "
        "scores, where the criterion gives those of all kernels at once. `numpy.partition` needs 4 "
        "for its copy; what is measured of it tells how exact the column is. "
        f"{_memory_growth(groups)}",
    ]
    return "\n\n".join(parts)


def _bytes(group: dict[str, Any], key: str) -> str:
    row = group["rows"][key]
    weights = group["weights"]
    return f"{row['extra_bytes'] / weights:.1f} ({row['numpy_bytes'] / weights:.1f})"


def _growth(groups: Groups) -> str:
    """How much longer an update takes with more weights, over all sizes and the last two."""
    said = []
    for first, last in ((groups[0], groups[-1]), (groups[-2], groups[-1])):
        more = last["weights"] / first["weights"]
        times = {
            key: last["rows"][key]["seconds"] / row["seconds"] for key, row in first["rows"].items()
        }
        floor = times.pop(FLOOR)
        faster = [f"{key} {ratio:.1f}" for key, ratio in times.items() if ratio > more]
        said.append(
            f"from {first['weights'] / 1e6:.1f} to {last['weights'] / 1e6:.0f} M, {more:.1f} times "
            f"the weights, updates take {min(times.values()):.1f} to {max(times.values()):.1f} "
            f"times as long (`numpy.partition` {floor:.1f}), "
            + (f"faster by {'; '.join(faster)}" if faster else "none faster")
        )
    return f"Growth (reach: no faster than the weights): {'; '.join(said)}."


def _system(groups: Groups) -> str:
    """How much of the largest updates is not computing."""
    shares = [
        row["system_seconds"] / row["seconds"]
        for key, row in groups[-1]["rows"].items()
        if key != FLOOR
    ]
    return (
        f"Of the largest, {100 * min(shares):.0f} to {100 * max(shares):.0f} % are the system's, "
        "which finds pages for new arrays: probably since the allocator keeps none for arrays of "
        "more than 32 MB, 8 M weights, which kernels have at the largest size alone."
    )


def _memory_growth(groups: Groups) -> str:
    """Whether bytes a weight rise, where they can be told."""
    exact = [group for group in groups if group["weights"] >= 0.9 * EXACT_FROM]
    first, last = exact[0], exact[-1]
    rises = {
        key: last["rows"][key]["extra_bytes"]
        / last["weights"]
        / (row["extra_bytes"] / first["weights"])
        for key, row in first["rows"].items()
        if key != FLOOR
    }
    return (
        f"From {first['weights'] / 1e6:.1f} M to {last['weights'] / 1e6:.1f} M bytes a weight "
        f"become {min(rises.values()):.2f} to {max(rises.values()):.2f} times as many (reach: no "
        "more than 1)."
    )


def draw_steps(saved: dict[str, Any]) -> None:
    """Ratios of step times with their quartiles."""
    groups = saved["results"]
    names = list(next(iter(groups.values())))
    with mpl.rc_context({"svg.hashsalt": "steps"}):
        figure, axes = pyplot.subplots(figsize=(7.5, 0.32 * len(names) + 1), layout="constrained")
        for (name, group), color, shift in zip(
            groups.items(), ("#1f6f8b", "#d1603d"), (-0.12, 0.12), strict=False
        ):
            middle = [group[key]["ratio"] for key in names]
            low = [group[key]["ratio"] - group[key]["low"] for key in names]
            high = [group[key]["high"] - group[key]["ratio"] for key in names]
            places = [place + shift for place in range(len(names))]
            axes.errorbar(
                middle, places, xerr=[low, high], fmt="o", color=color, label=TITLES[name]
            )
        axes.axvline(1, color="0.3", linewidth=1)
        axes.axvline(1.02, color="0.6", linewidth=1, linestyle=":")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("time of a step with masks over that of the plain step (dotted: 1.02)")
        axes.grid(axis="x", color="0.9")
        axes.legend(frameon=False, fontsize=8)
        with replacing(STEPS_PLOT) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def draw_masks(saved: dict[str, Any]) -> None:
    """Seconds and bytes of an update by the number of weights."""
    groups = list(saved["results"].values())
    with mpl.rc_context({"svg.hashsalt": "masks"}):
        figure, (above, below) = pyplot.subplots(
            2, 1, figsize=(7.5, 7.5), sharex=True, layout="constrained"
        )
        _draw(above, groups, lambda group, row: row["seconds"])
        _draw(below, groups, lambda group, row: row["extra_bytes"] / group["weights"])
        weights = [group["weights"] for group in groups]
        floor = groups[-1]["rows"][FLOOR]["seconds"] / weights[-1]
        above.plot(weights, [floor * w for w in weights], ":", color="0.5", label="in proportion")
        above.set(ylabel="seconds of an update", yscale="log", xscale="log")
        below.set(xlabel="weights", ylabel="most extra bytes a weight")
        below.set_ylim(bottom=0)
        above.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        with replacing(MASKS_PLOT) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def _draw(axes: Any, groups: Groups, value: Callable[[Any, Any], float]) -> None:
    """A line for each unit and scope: one colour a unit, local ones dashed."""
    weights = [group["weights"] for group in groups]
    colors = {name: f"C{index}" for index, name in enumerate(mask_update.CASES)}
    for key in groups[0]["rows"]:
        unit, _, scope = key.rpartition(", ")
        line = "--" if scope == "local" else "-"
        axes.plot(
            weights,
            [value(group, group["rows"][key]) for group in groups],
            line,
            color=colors.get(unit, "k"),
            marker="o",
            ms=3,
            lw=2 if key == FLOOR else 1.2,
            label=key,
        )
    axes.grid(color="0.9")


def main(_: list[str]) -> None:
    for marker, title, name, table, plot, path in (
        ("steps", "What a step costs", step_times.NAME, steps, draw_steps, STEPS_PLOT),
        (
            "masks",
            "What an update of the masks costs",
            mask_update.NAME,
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
