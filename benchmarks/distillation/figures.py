"""The tables and the plots of the comparison on CIFAR-10 and of the step times, from the results.

    python -m benchmarks.distillation.figures

Writes docs/distillation_methods.svg and docs/distillation_steps.svg, and into
docs/distillation.md what stands between the comments `<!-- representation -->` and
`<!-- step times -->` and their ends.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from typing import Any

import matplotlib as mpl
from absl import app
from matplotlib import pyplot

from benchmarks import pages, results
from benchmarks.distillation import methods, representation
from tfcomp.files import replacing

DOCS = pages.DOCS
PAGE = DOCS / "distillation.md"
PLOT = DOCS / "distillation_methods.svg"
STEPS_PLOT = DOCS / "distillation_steps.svg"
# A difference of more than this many standard errors is called one.
ERRORS = 2.0
COMPARISON = """## Which method helps

A small network on CIFAR-10, with the weights that were published for each method and none tuned
here: on other networks and data the order will be another. The thirteen methods of the
RepDistiller benchmark, and some that are compared on responses alone. Each is trained by itself
and added to Hinton's loss (KD)."""
TIMES = """## What a step costs"""
COLORS = {False: "#1f6f8b", True: "#d1603d"}


@dataclasses.dataclass(frozen=True)
class Gap:
    """A run's accuracy less that of the student alone with the same seed, in points.

    Attributes:
        accuracy: Mean test accuracy over the seeds, in percent.
        points: The difference for each seed.
        minutes: Mean minutes of one core.
    """

    accuracy: float
    points: list[float]
    minutes: float

    @property
    def mean(self) -> float:
        return statistics.mean(self.points)

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None from one seed."""
        count = len(self.points)
        return statistics.stdev(self.points) / count**0.5 if count > 1 else None

    @property
    def verdict(self) -> str:
        """Whether it beats the student alone."""
        if self.error is None:
            return "one seed"
        if abs(self.mean) <= ERRORS * self.error:
            return "does not beat it"
        return "beats it" if self.mean > 0 else "worse"


def found() -> dict[str, dict[int, dict[str, Any]]]:
    """What the finished runs have found, by run and seed."""
    by_run: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted((results.FOLDER / representation.NAME).glob("*.json")):
        run, seed = path.stem.rsplit("-", 1)
        value = representation.stored(run, int(seed))
        if value is not None and run in methods.RUNS:
            by_run.setdefault(run, {})[int(seed)] = value
    return by_run


def gaps(by_run: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Gap]:
    """Paired differences of all runs, over the seeds that the student alone has as well."""
    alone = {s: v["test_accuracy"] for s, v in by_run.get(methods.ALONE, {}).items()}
    made = {}
    for run, seeds in by_run.items():
        both = [s for s, v in seeds.items() if "test_accuracy" in v and s in alone]
        if both:
            made[run] = Gap(
                100 * statistics.mean(seeds[s]["test_accuracy"] for s in both),
                [100 * (seeds[s]["test_accuracy"] - alone[s]) for s in both],
                statistics.mean(seeds[s]["core_seconds"] for s in both) / 60,
            )
    return made


def cells(gap: Gap | None) -> list[str]:
    """Accuracy, difference and verdict."""
    if gap is None:
        return ["–", "–", "–"]
    error = "" if gap.error is None else f" ± {gap.error:.2f}"
    return [f"{gap.accuracy:.2f}", f"{gap.mean:+.2f}{error}", gap.verdict]


def comparison(by_run: dict[str, dict[int, dict[str, Any]]]) -> str:
    """The table of all methods, the best by itself first."""
    made = gaps(by_run)
    names = [n for n in methods.METHODS if n != methods.ALONE and n in made]
    names.sort(key=lambda n: -made[n].mean)
    lines = [
        "| method | alone, % | − student | | with KD, % | − student | | minutes | weights |",
        "|---|--:|--:|---|--:|--:|---|--:|---|",
    ]
    for name in names:
        method, gap = methods.METHODS[name], made[name]
        both = ["–"] * 3 if name == "kd" else cells(made.get(name + methods.WITH_KD))
        row = [f"{method.title} ({method.year})", *cells(gap), *both]
        lines.append(f"| {' | '.join([*row, f'{gap.minutes:.1f}', method.published])} |")
    return "\n".join(lines)


def summary(by_run: dict[str, dict[int, dict[str, Any]]]) -> str:
    """What was compared with what, and on which machine."""
    alone = [100 * v["test_accuracy"] for v in by_run[methods.ALONE].values()]
    spread = f" ± {statistics.stdev(alone):.2f} (spread of seeds)" if len(alone) > 1 else ""
    saved = json.loads(
        next((results.FOLDER / representation.NAME).glob("alone-*.json")).read_text()
    )
    teacher = results.load(f"{representation.NAME}/{representation.TEACHER}-0")
    of_teacher = f"{100 * teacher['results']['test_accuracy']:.2f} %" if teacher else "not judged"
    failed = [f"{r} ({v['error']})" for r, s in by_run.items() for v in s.values() if "error" in v]
    budget, versions, cpu = saved["budget"], saved["versions"], saved["hardware"]["cpu"]
    counts = sorted({len(seeds) for seeds in by_run.values()})
    seeds = "one seed" if counts == [1] else f"{' to '.join(map(str, counts))} seeds"
    lines = [
        f"Student alone {statistics.mean(alone):.2f} %{spread}, teacher {of_teacher}; 10,000 test "
        f"images, {seeds}, differences paired by seed, ± standard error. A method beats the "
        f"student alone, or is worse, beyond {ERRORS:.0f} standard errors, which three seeds reach "
        "by chance in 18 of 100 cases, on either side; one seed tells nothing of that.",
        "",
        f"Budget of each student: {budget['epochs']} epochs of 10,000 training images in batches "
        f"of {budget['batch']}, first stages included, on one core; minutes are that core's. "
        f"{cpu}, no GPU; TensorFlow {versions['tensorflow']}, Keras {versions['keras']}.",
    ]
    missing = [run for run in methods.RUNS if run not in by_run]
    if missing:
        lines += ["", f"Not yet run: {', '.join(missing)}."]
    if failed:
        lines += ["", f"Failed: {'; '.join(failed)}."]
    return "\n".join(lines)


def draw(made: dict[str, Gap]) -> None:
    """Differences to the student alone, with their standard errors and each seed's point."""
    mpl.rcParams["svg.hashsalt"] = "tfcomp"
    names = [n for n in methods.METHODS if n != methods.ALONE]
    names = [n for n in names if n in made or n + methods.WITH_KD in made]
    names.sort(key=lambda n: max(made[r].mean for r in (n, n + methods.WITH_KD) if r in made))
    figure, axes = pyplot.subplots(figsize=(7.5, 0.36 * len(names) + 1.2), layout="constrained")
    for row, name in enumerate(names):
        for kd, offset in ((False, 0.14), (True, -0.14)):
            gap = made.get(name + methods.WITH_KD * kd)
            if gap is None:
                continue
            color, height = COLORS[kd], row + offset
            axes.plot(gap.points, [height] * len(gap.points), ".", color=color, alpha=0.35)
            axes.errorbar(gap.mean, height, xerr=gap.error, fmt="o", color=color)
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(range(len(names)), [methods.METHODS[n].title for n in names])
    axes.set_xlabel("test accuracy − that of the student alone, points (± standard error)")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    for kd, label in ((False, "alone"), (True, "with KD")):
        axes.plot([], [], "o", color=COLORS[kd], label=label)
    axes.legend(loc="lower right", frameon=False)
    with replacing(PLOT) as temporary:
        figure.savefig(temporary, metadata={"Date": None})
    pyplot.close(figure)


def times() -> str | None:
    """The table of step times; None where they were not measured."""
    saved = results.load(methods.STEP_TIMES)
    if saved is None:
        return None
    running, cached, peers = (saved["results"][key] for key in ("running", "cached", "peers"))
    lines = ["| method | teacher running | teacher cached |", "|---|--:|--:|"]
    for name in [*running, *(n for n in peers if n != "A/A control")]:
        row = [_ratio(group.get(name)) for group in ({**running, **peers}, cached)]
        lines.append(f"| {_title(name)} | {row[0]} | {row[1]} |")
    budget, machine = saved["budget"], saved["hardware"]
    lines += [
        "",
        "Time of a step, median and quartiles, divided by: teacher running, that of the student's "
        "plain step and the teacher forward in one function; teacher cached, that of the plain "
        "step; mutual learning, two plain steps. A/A controls are the worst of all groups. One "
        f"core, batch {budget['batch']}, {budget['rounds']} rounds of {budget['steps']} steps, "
        f"interleaved; {machine['cpu']}.",
    ]
    return "\n".join(lines)


def draw_times() -> None:
    """Ratios of step times with their quartiles."""
    saved = results.load(methods.STEP_TIMES)
    if saved is None:
        return
    mpl.rcParams["svg.hashsalt"] = "tfcomp"
    running, cached, peers = (saved["results"][key] for key in ("running", "cached", "peers"))
    running = {**running, **{n: r for n, r in peers.items() if n != "A/A control"}}
    names = sorted(running, key=lambda name: -running[name]["ratio"])
    figure, axes = pyplot.subplots(figsize=(7.5, 0.3 * len(names) + 1.2), layout="constrained")
    for group, label, color in (
        (running, "running", COLORS[False]),
        (cached, "cached", COLORS[True]),
    ):
        rows = [(row, group[name]) for row, name in enumerate(names) if name in group]
        middles = [one["ratio"] for _, one in rows]
        spread = [
            [one["ratio"] - one["low"] for _, one in rows],
            [one["high"] - one["ratio"] for _, one in rows],
        ]
        axes.errorbar(
            middles,
            [row for row, _ in rows],
            xerr=spread,
            fmt="o",
            color=color,
            label=f"teacher {label}",
        )
    axes.axvline(1, color="0.3", linewidth=1)
    axes.set_yticks(range(len(names)), [_title(name) for name in names])
    axes.set_xlabel("time of a step over that of the work that it cannot do without")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(loc="upper right", frameon=False)
    with replacing(STEPS_PLOT) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot.close(figure)


_TITLES = {
    "gradient_at": "AT of gradients",
    "jacobian": "Jacobian matching",
    "attention_jacobian": "Jacobians of attention",
    "jacobian_noise": "noisy inputs",
    "logit_l1": "L1 of logits",
    "projection": "knowledge projection, all routes",
}


def _title(name: str) -> str:
    method = methods.METHODS.get(name)
    return method.title if method else _TITLES.get(name, name.replace("_", " "))


def _ratio(value: dict[str, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value['ratio']:.2f} ({value['low']:.2f}–{value['high']:.2f})"


def put(marker: str, text: str) -> None:
    """Replaces what stands between the comments of that name on this page."""
    pages.put(PAGE, marker, text)


def main(_: list[str]) -> None:
    by_run = found()
    if methods.ALONE in by_run:
        draw(gaps(by_run))
        image = f"![Differences to the student alone]({PLOT.name})"
        parts = [COMPARISON, comparison(by_run), summary(by_run), image]
        put("representation", "\n\n".join(parts))
    table = times()
    if table is not None:
        draw_times()
        image = f"![Time of a step of each method]({STEPS_PLOT.name})"
        put("step times", f"{TIMES}\n\n{table}\n\n{image}")
    print(PAGE)


if __name__ == "__main__":
    app.run(main)
