"""The tables and plots of Hinton's MNIST and of model compression, from the results.

    python -m benchmarks.distillation.classics_figures

Writes docs/distillation_mnist.svg and docs/distillation_compression.svg, and into
docs/distillation.md what stands between the comments `<!-- mnist -->` and `<!-- compression -->`
and their ends.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from absl import app
from matplotlib import pyplot

from benchmarks import results
from benchmarks.distillation import figures
from tfcomp.files import replacing

MNIST_PLOT = figures.DOCS / "distillation_mnist.svg"
COMPRESSION_PLOT = figures.DOCS / "distillation_compression.svg"
# What a row of the paper's experiment is called, and what it is to reach.
ROWS = {
    "teacher": ("teacher, 2×1200, dropout and shifted images", 75),
    "alone": ("student, 2×800, alone", None),
    "distilled": ("student, distilled", 80),
    "without 3": ("student, distilled without any 3", None),
    "corrected": ("the same, bias of the 3 corrected", None),
}
KINDS = {
    "munge": "MUNGE",
    "noise": "Gaussian noise",
    "random": "independent random attributes",
}


def mnist(saved: dict[str, Any]) -> str:
    """Test errors beside the paper's."""
    found, budget = saved["results"], saved["budget"]
    seeds, paper = found["by_seed"], found["paper"]
    lines = [
        "| errors on 10,000 test images | paper | ours, mean | each seed | reach |",
        "|---|--:|--:|---|---|",
    ]
    for key, (title, reach) in ROWS.items():
        if key == "teacher":
            ours, each = float(found["teacher"]), "one teacher"
        elif key not in found["mean"]:
            continue
        else:
            ours = found["mean"][key]
            each = ", ".join(str(seed[key]) for seed in seeds.values())
        asked = (
            "as it falls" if reach is None else f"≤ {reach}{'' if ours <= reach else ', missed'}"
        )
        lines.append(f"| {title} | {paper[key]} | {ours:.1f} | {each} | {asked} |")
    shares = [100 * seed["share of 3s right"] for seed in seeds.values()]
    mean, each = sum(shares) / len(shares), ", ".join(f"{share:.2f}" for share in shares)
    asked = f"≥ 98{'' if mean >= 98 else ', missed'}"
    lines += [
        f"| test 3s right after the correction, % | 98.6 | {mean:.2f} | {each} | {asked} |",
        "",
        f"One teacher of {budget['teacher_epochs']} epochs, {len(seeds)} students of each kind of "
        f"{budget['student_epochs']} epochs, T = {budget['temperature']:g}, the teacher's answers "
        "cached; all choices, that of the bias too, on the last 10,000 training images. "
        f"{saved['hardware']['cpu']}.",
    ]
    return "\n".join(lines)


def draw_mnist(found: dict[str, Any]) -> None:
    """Each student's errors, and the paper's."""
    with mpl.rc_context({"svg.hashsalt": "mnist"}):
        figure, axes = pyplot.subplots(figsize=(7, 2.8), layout="constrained")
        for place, key in enumerate(ROWS):
            one = key == "teacher"
            ours = [found["teacher"]] if one else [s[key] for s in found["by_seed"].values()]
            axes.plot(ours, [place] * len(ours), "o", color="#1f6f8b", label="ours, each seed")
            axes.plot(found["paper"][key], place, "|", color="0.1", ms=16, mew=2, label="paper")
        axes.set_yticks(range(len(ROWS)), [title for title, _ in ROWS.values()])
        axes.invert_yaxis()
        axes.set(xlabel="errors on 10,000 test images", xlim=(0, None))
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[:2], labels[:2], frameon=False, fontsize=8)
        _save(figure, MNIST_PLOT)


def compression(saved: dict[str, Any]) -> str:
    """Accuracy and RMSE by kind and size of the transfer set."""
    found, recipe = saved["results"], saved["budget"]["recipe"]
    labelled = f"{recipe['train_rows']:,} labelled"
    members = found["members"]
    single = [sum(m[measure] for m in members) / len(members) for measure in ("accuracy", "rmse")]
    whole = found["ensemble"]
    lines = [
        "| net | trained on | accuracy, % | RMSE |",
        "|---|---|--:|--:|",
        f"| ensemble of {len(members)} | {labelled} | {100 * whole['accuracy']:.2f} "
        f"| {whole['rmse']:.4f} |",
        f"| one of its nets, mean | {labelled} | {100 * single[0]:.2f} | {single[1]:.4f} |",
    ]
    for group, curve in found["curves"].items():
        kind, _, size = group.partition("/")
        data = f"{int(size):,} by {KINDS[kind]}" if size else labelled
        (accuracy, spread), (rmse, error) = curve["accuracy"], curve["rmse"]
        lines.append(
            f"| student | {data} | {100 * accuracy:.2f} ± {100 * spread:.2f} "
            f"| {rmse:.4f} ± {error:.4f} |"
        )
    parameters = found["parameters"]
    lines += [
        "",
        f"MNIST in 7×7 attributes; {parameters['ensemble']:,} parameters against "
        f"{parameters['student']:,}; mean of 3 seeds ± standard error, 10,000 test digits; at most "
        f"{recipe['updates_between_checks'] * recipe['checks']:,} updates, stopped on "
        f"{recipe['validation_rows']:,} labelled digits. One core, {saved['hardware']['cpu']}.",
    ]
    return "\n".join(lines)


def draw_compression(found: dict[str, Any]) -> None:
    """Accuracy and RMSE against the size of the transfer set."""
    with mpl.rc_context({"svg.hashsalt": "compression"}):
        figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        for axes, measure, scale in zip(panels, ("accuracy", "rmse"), (100, 1), strict=True):
            for kind, title in KINDS.items():
                sizes = [int(g.partition("/")[2]) for g in found["curves"] if g.startswith(kind)]
                points = [found["curves"][f"{kind}/{size}"][measure] for size in sizes]
                means, errors = (
                    [scale * value for value in part] for part in zip(*points, strict=True)
                )
                axes.errorbar(sizes, means, errors, marker="o", markersize=3, label=title)
            alone = scale * found["curves"]["alone"][measure][0]
            axes.axhline(alone, color="0.4", linestyle=":", label="student on the labels")
            teacher = scale * found["ensemble"][measure]
            axes.axhline(teacher, color="0.1", linestyle="--", label="ensemble")
            axes.set(xscale="log", xlabel="size of the transfer set")
        panels[0].set_ylabel("test accuracy, %")
        panels[1].set_ylabel("RMSE against the labels")
        panels[0].legend(frameon=False, fontsize=8)
        _save(figure, COMPRESSION_PLOT)


def _save(figure: Any, path: Any) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def main(_: list[str]) -> None:
    saved = results.load("distillation_hinton_mnist")
    if saved is not None:
        draw_mnist(saved["results"])
        text = "As in the first experiment of Hinton, Vinyals and Dean (2015)."
        image = f"![Errors of each net]({MNIST_PLOT.name})"
        parts = ["## Hinton's MNIST", text, mnist(saved), image]
        again = results.load("distillation_hinton_mnist_200")
        if again is not None:
            why = (
                "A second attempt, with a teacher that was better on the held-out training images "
                "(68 errors there in place of 84), which helped neither the student nor its 3s."
            )
            parts += [why, mnist(again)]
        shifted = results.load("distillation_hinton_mnist_shifted")
        if shifted is not None:
            why = (
                "The paper's transfer set is the plain images. With shifted ones, the teacher "
                "asked once about each image in all the 25 places that it was trained on and the "
                "student seeing another in each epoch, a student of the same kind learns more:"
            )
            parts += [why, mnist(shifted)]
        figures.put("mnist", "\n\n".join(parts))
    saved = results.load("distillation_model_compression")
    if saved is not None:
        draw_compression(saved["results"])
        text = (
            "As Buciluă, Caruana and Niculescu-Mizil (2006): an ensemble labels a synthetic "
            "transfer set, and a small net is trained on that alone."
        )
        image = f"![Accuracy and RMSE by size]({COMPRESSION_PLOT.name})"
        parts = ["## Model compression", text, compression(saved), image]
        figures.put("compression", "\n\n".join(parts))
    print(figures.PAGE)


if __name__ == "__main__":
    app.run(main)
