"""The table and the plots of the lottery tickets, from the results.

    python -m benchmarks.pruning.lottery_figures

Writes docs/pruning_lottery.svg, and into docs/pruning.md what stands between `<!-- lottery -->` and
its end.
"""

from __future__ import annotations

import statistics
from typing import Any

import matplotlib as mpl
from absl import app
from matplotlib import pyplot

from benchmarks import results
from benchmarks.pages import DOCS, put
from benchmarks.pruning import lottery
from tfcomp.files import replacing

PLOT = DOCS / "pruning_lottery.svg"
Seeds = list[dict[str, Any]]


def found(name: str) -> Seeds:
    """The finished seeds of a training."""
    paths = sorted((results.FOLDER / lottery.NAME).glob(f"{name}-[0-9].json"))
    saved = [results.load(f"{lottery.NAME}/{path.stem}") for path in paths]
    return [one["results"] for one in saved if one is not None]


def trainings() -> dict[str, Seeds]:
    """All that are there, by name, dense first."""
    names = ["dense", *(f"{kind}-{n}" for n in lottery.LEVELS for kind in ("ticket", "random"))]
    return {name: seeds for name in names if (seeds := found(name))}


def title(name: str) -> str:
    """In words."""
    kind = {"dense": "dense", "ticket": "ticket", "random": "the same mask, new weights"}
    return kind[name.partition("-")[0]]


def mean(seeds: Seeds, key: str) -> float:
    """Over the seeds."""
    return statistics.mean(seed[key] for seed in seeds)


def table(rows: dict[str, Seeds]) -> str:
    """When each stops, and its errors there and at the end."""
    lines = [
        "| network | weights left | early stop at step | error there, % | error at the end, % |"
        " seeds |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, seeds in rows.items():
        cells = [
            title(name),
            f"{100 * mean(seeds, 'left'):.1f} %",
            f"{mean(seeds, 'stop_step'):,.0f}",
            f"{mean(seeds, 'stop_error'):.2f}",
            f"{mean(seeds, 'last_error'):.2f}",
            str(len(seeds)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    barriers = [
        f"{one[0]['barrier']:.2f} % for {'the dense network' if number == 0 else 'its ticket'}"
        for number in (0, lottery.LEVELS[1])
        if (one := found(f"barrier-{number}"))
    ]
    if barriers:
        lines += [
            "",
            "Error barrier between two copies trained in different orders of the images (seed 0): "
            f"{', '.join(barriers)}.",
        ]
    saved = results.load(f"{lottery.NAME}/dense-0")
    cpu = "" if saved is None else f" One core, {saved['hardware']['cpu']}."
    lines += [
        "",
        f"LeNet-300-100, Adam at 1.2e-3, batches of {lottery.BATCH}, {lottery.STEPS:,} steps (the "
        f"paper: 50,000), {lottery.HELD_OUT:,} training images held out; a round removes a fifth "
        "of each hidden layer and a tenth of the output layer. Early stop: the smallest held-out "
        f"loss, looked at every {lottery.EVERY} steps. 10,000 test images.{cpu}",
    ]
    return "\n".join(lines)


def draw(rows: dict[str, Seeds]) -> None:
    """Test errors while training, and where training stops."""
    with mpl.rc_context({"svg.hashsalt": "lottery"}):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        level = lottery.LEVELS[1]
        colours = {"dense": "0.3", "ticket": "#1f6f8b", "random": "#c8553d"}
        for name, seeds in rows.items():
            kind, _, number = name.partition("-")
            if number not in ("", str(level)):
                continue
            curves = zip(*(seed["errors"] for seed in seeds), strict=True)
            values = [statistics.mean(at) for at in curves]
            steps = [(1 + 5 * i) * lottery.EVERY for i in range(len(values))]
            label = f"{title(name)}, {100 * mean(seeds, 'left'):.0f} %"
            left.plot(steps, values, color=colours[kind], label=label, lw=1.3)
        left.set(xlabel="step", ylabel="test error, %", yscale="log", ylim=(1.3, 6))
        left.set_yticks([1.5, 2, 3, 5], ["1.5", "2", "3", "5"], minor=False)
        left.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        left.legend(frameon=False, fontsize=8)
        for kind in ("ticket", "random"):
            some = {n: s for n, s in rows.items() if n == "dense" or n.startswith(kind)}
            shares = [100 * mean(seeds, "left") for seeds in some.values()]
            stops = [mean(seeds, "stop_step") for seeds in some.values()]
            label = title(kind)
            right.plot(shares, stops, "o-", color=colours[kind], label=label, lw=1.3, ms=4)
        right.set(xlabel="weights left, %", ylabel="early stop at step", xscale="log")
        right.set_xticks([100, 50, 20, 5], ["100", "50", "20", "5"])
        right.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        right.invert_xaxis()
        right.legend(frameon=False, fontsize=8)
        for axes in (left, right):
            axes.grid(color="0.92")
            axes.set_axisbelow(True)
        with replacing(PLOT) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def main(_: list[str]) -> None:
    rows = trainings()
    if not rows:
        raise SystemExit("No results yet: run benchmarks.pruning.lottery first.")
    draw(rows)
    image = f"![Test errors while training, and where training stops]({PLOT.name})"
    put(
        DOCS / "pruning.md",
        "lottery",
        "\n\n".join(["## Lottery tickets", table(rows), image]),
    )
    print(DOCS / "pruning.md")


if __name__ == "__main__":
    app.run(main)
