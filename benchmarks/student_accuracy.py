"""Does the main job's int8 student keep up with its own architecture trained alone in float?

For each seed the demo's recipe is run (teacher, student, half of the channels, fine-tuning,
quantisation-aware training, int8 file). Beside it the final architecture, its weights made anew,
is trained on the labels alone, in float, for as many epochs as the student has had in all its
stages, with the same batches, augmentation, optimiser and learning rate. Both are judged on the
10,000 test images of the full Fashion-MNIST. Resumable: finished seeds and stages are kept.

    TFCOMP_DATA=DIR python -m benchmarks.student_accuracy [--work=DIR] [--seeds=5]
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from typing import Any

import keras
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import results
from tfcomp import conversion, datasets, recipes
from tfcomp.recipes import training
from tfcomp.recipes.recipe import Distill, Quantize, Recipe, Shrink, Train

_WORK = flags.DEFINE_string("work", "build/student_accuracy", "folder for the runs")
_SEEDS = flags.DEFINE_integer("seeds", 5, "how many seeds", 1)

NAME = "student_accuracy"
STAGES_TO_JUDGE = ("teacher", "student", "tuned", "quantized")
JUDGED = (*STAGES_TO_JUDGE, "int8", "alone")


def student_stages(recipe: Recipe) -> list[Any]:
    """The stages in which the student learns."""
    return [s for s in recipe.stages if isinstance(s, (Distill, Quantize))]


def judge_seed(seed: int, work: pathlib.Path, full: datasets.Dataset) -> dict[str, Any]:
    """Accuracies on the full test set for one seed."""
    # Seeds of neighbouring stages are one apart; a step of 100 keeps the runs' seeds apart.
    recipe = dataclasses.replace(recipes.demo(), seed=100 * seed)
    folder = work / f"seed{seed}"
    recipes.run(recipe, folder, resume=folder.exists(), progress=True)
    found: dict[str, Any] = {}
    for index, stage in enumerate(recipe.stages, start=1):
        if stage.name in STAGES_TO_JUDGE:
            model = keras.saving.load_model(folder / f"{index}-{stage.name}.keras")
            predictions = model.predict(full.x_test, batch_size=500, verbose=0)
            found[stage.name] = training.accuracy(predictions, full)
    report = recipes.read_report(folder)
    *_, quantized, final = report["stages"]
    int8 = conversion.Artifact(folder / final["files"]["tflite"])
    found["int8"] = training.accuracy(int8.run(full.x_test), full)
    found["agreement"] = report["parity"]["argmax_agreement"]
    found["int8_bytes_over_float"] = final["bytes"] / quantized["bytes"]
    found["parameters"] = final["parameters"]
    found["alone"] = training.accuracy(
        train_alone(recipe, folder).predict(full.x_test, batch_size=500, verbose=0), full
    )
    return found


def train_alone(recipe: Recipe, folder: pathlib.Path) -> keras.Model:
    """The final architecture with new weights, trained on the labels for the same epochs."""
    shrunk = next(i for i, s in enumerate(recipe.stages, start=1) if isinstance(s, Shrink))
    name = recipe.stages[shrunk - 1].name
    keras.utils.set_random_seed(recipe.seed)
    shape_only = keras.saving.load_model(folder / f"{shrunk}-{name}.keras")
    model = keras.Model.from_config(shape_only.get_config())
    stages = student_stages(recipe)
    schedule = Train(
        "alone", epochs=sum(s.epochs for s in stages), learning_rate=stages[0].learning_rate
    )
    dataset = datasets.load(recipe.data.name)
    training.fit(model, dataset, recipe.data, schedule, recipe.seed)
    return model


def summary(by_seed: dict[str, dict[str, float]]) -> dict[str, float]:
    """Means over seeds, in percent, and the paired difference with its standard error."""
    runs = list(by_seed.values())
    gaps = [100 * (run["int8"] - run["alone"]) for run in runs]
    means = {key: 100 * statistics.mean(run[key] for run in runs) for key in JUDGED}
    error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
    return {**means, "difference": statistics.mean(gaps), "standard_error": error}


def show(by_seed: dict[str, dict[str, float]]) -> None:
    """Prints a row for each seed and one for the means."""
    table = Table(title="Accuracy on the 10,000 test images of Fashion-MNIST, %")
    for name in ("seed", *JUDGED, "int8 - alone"):
        table.add_column(name, justify="right")
    for seed, run in by_seed.items():
        gap = 100 * (run["int8"] - run["alone"])
        table.add_row(seed, *(f"{100 * run[n]:.2f}" for n in JUDGED), f"{gap:+.2f}")
    means = summary(by_seed)
    gap_text = f"{means['difference']:+.2f} ± {means['standard_error']:.2f}"
    table.add_row("mean", *(f"{means[n]:.2f}" for n in JUDGED), gap_text)
    Console().print(table)


def main(_: list[str]) -> None:
    """Runs what is not yet in the results, then prints the table."""
    full = datasets.load("fashion_mnist")
    recipe = recipes.demo()
    saved = results.load(NAME)
    same = saved is not None and saved["budget"]["recipe"] == recipe.to_dict()
    by_seed: dict[str, dict[str, float]] = saved["results"]["by_seed"] if saved and same else {}
    for seed in range(_SEEDS.value):
        if str(seed) not in by_seed:
            by_seed[str(seed)] = judge_seed(seed, pathlib.Path(_WORK.value), full)
            results.save(
                NAME,
                seed=0,
                budget={"seeds": _SEEDS.value, "recipe": recipe.to_dict()},
                results={"by_seed": by_seed, "summary": summary(by_seed)},
            )
    show(by_seed)


if __name__ == "__main__":
    app.run(main)
