"""Model compression as in 2006: how good the small net gets with the size of its transfer set.

MNIST in 7×7 attributes (means of 4×4 pixels). Eight nets of 512 hidden units learn 4,000 labelled
digits and are averaged (`Ensemble`). A net of 32 hidden units is then trained on synthetic digits
alone, 1,000 to 100,000 of them, which the ensemble has labelled with its probabilities; it is
trained on no real digit and on no label. The digits come from MUNGE, for comparison from Gaussian
noise on the 4,000, and from drawing each attribute by itself from its values among the 4,000 (the
paper's RANDOM). Beside it the same small net trained on the 4,000 labels.

The judges are accuracy and RMSE on the 10,000 test digits. Every net is trained alike, by our own
rule: squared error of the probabilities, Adam, at most 15,000 updates, stopped when the squared
error on 1,000 validation digits has not fallen for 4,000 updates (against their labels for nets
that learn labels, against the ensemble's probabilities for the compressed ones), and the best
weights are taken. With 25,000 digits and more the 15,000 updates are used up. The learning rate and
MUNGE's p and s (`--choose`) were chosen on the same 1,000; the deviation of the noise was not
tuned. Smaller transfer sets are parts of the larger ones.

Buciluă, Caruana, Niculescu-Mizil (2006), Model Compression, KDD. Resumable: what is in the results
is not trained again. A quarter of an hour on one core.

    TFCOMP_DATA=DIR python -m benchmarks.distillation.model_compression [--work=DIR] [--seeds=3]
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import results
from tfcomp import datasets
from tfcomp.distillation import Ensemble, munge, oversample_with_noise, pseudo_labels
from tfcomp.files import replacing

_WORK = flags.DEFINE_string("work", "build/model_compression", "folder for the ensemble")
_SEEDS = flags.DEFINE_integer("seeds", 3, "how many students for each transfer set", 1)
_CHOOSE = flags.DEFINE_boolean("choose", False, "print validation errors for several p and s")

NAME = "distillation_model_compression"
SIZES = (1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000)
FEW = (1_000, 10_000, 100_000)
SIZES_OF = {"munge": SIZES, "noise": FEW, "random": FEW}
TITLES = {"munge": "MUNGE", "noise": "noise", "random": "attributes by themselves"}
CLASSES = 10
Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What was fixed before the test set was looked at."""

    train_rows: int = 4_000
    validation_rows: int = 1_000
    pool_pixels: int = 4
    teachers: int = 8
    teacher_units: int = 512
    student_units: int = 32
    batch_size: int = 128
    learning_rate: float = 3e-3
    updates_between_checks: int = 500
    checks: int = 30
    patience_checks: int = 8
    probability: float = 0.2
    local_variance: float = 1.0
    noise_stddev: float = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Attributes in [0, 1] and one-hot labels."""

    x: Array
    y: Array
    x_validation: Array
    y_validation: Array
    x_test: Array
    y_test: Array


def load(recipe: Recipe) -> Split:
    """MNIST: training and validation rows from the training set, drawn once."""
    data = datasets.load("mnist")
    x, x_test = (attributes(part, recipe.pool_pixels) for part in (data.x_train, data.x_test))
    one_hot = np.eye(CLASSES, dtype=np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    train = order[: recipe.train_rows]
    held_out = order[recipe.train_rows :][: recipe.validation_rows]
    y, y_test = (one_hot[labels.astype(int)] for labels in (data.y_train, data.y_test))
    return Split(x[train], y[train], x[held_out], y[held_out], x_test, y_test)


def attributes(images: Any, pixels: int) -> Array:
    """Means over squares of pixels, as rows in [0, 1]."""
    side = images.shape[1] // pixels
    squares = images.reshape(len(images), side, pixels, side, pixels)
    means = squares.mean(axis=(2, 4)).reshape(len(images), -1) / 255
    return np.asarray(means, np.float32)


def network(inputs: int, units: int) -> keras.Model:
    """One hidden layer and a softmax."""
    layers = [keras.layers.Dense(units, "relu"), keras.layers.Dense(CLASSES, "softmax")]
    return keras.Sequential([keras.Input((inputs,)), *layers])


def train(
    units: int, x: Array, y: Array, validation: tuple[Array, Array], recipe: Recipe, seed: int
) -> tuple[keras.Model, dict[str, float]]:
    """A net with its best weights on the validation rows, and how it was trained."""
    keras.utils.set_random_seed(seed)
    model = network(x.shape[1], units)
    inputs, targets = tf.constant(x), tf.constant(y)
    options = tf.data.Options()
    options.autotune.enabled = False
    rows = tf.data.Dataset.range(len(x)).shuffle(len(x), seed=seed).repeat()
    batches = (
        rows.batch(recipe.batch_size, drop_remainder=True)
        .map(lambda chosen: (tf.gather(inputs, chosen), tf.gather(targets, chosen)))
        .with_options(options)
    )
    every = recipe.updates_between_checks
    model.compile(
        keras.optimizers.Adam(recipe.learning_rate), "mean_squared_error", steps_per_execution=every
    )
    stop = keras.callbacks.EarlyStopping(
        "val_loss", patience=recipe.patience_checks, restore_best_weights=True
    )
    history = model.fit(
        batches,
        steps_per_epoch=every,
        epochs=recipe.checks,
        validation_data=validation,
        validation_batch_size=recipe.validation_rows,
        callbacks=[stop],
        verbose=0,
        shuffle=False,
    ).history["val_loss"]
    return model, {"updates": every * len(history), "validation_mse": float(min(history))}


def ensemble(split: Split, recipe: Recipe, folder: pathlib.Path) -> keras.Model:
    """The teachers, trained on the labels from different seeds, as one; from the file if there."""
    path = folder / "ensemble.keras"
    if path.exists():
        return keras.saving.load_model(path)
    validation = (split.x_validation, split.y_validation)
    teachers = [
        train(recipe.teacher_units, split.x, split.y, validation, recipe, 100 + number)[0]
        for number in range(recipe.teachers)
    ]
    model = Ensemble(teachers)
    with replacing(path) as temporary:
        model.save(temporary)
    return model


def probabilities(teacher: keras.Model, x: Array) -> Array:
    """What the ensemble gives the classes."""
    labelled = pseudo_labels(x, teacher, batch_size=1_000)
    return np.concatenate([labels for _, labels in labelled.as_numpy_iterator()])


def judge(outputs: Array, wanted: Array) -> dict[str, float]:
    """Accuracy, and RMSE of the probabilities over all classes."""
    right = outputs.argmax(axis=1) == wanted.argmax(axis=1)
    error = np.sqrt(np.mean(np.square(outputs - wanted, dtype=np.float64)))
    return {"accuracy": float(right.mean()), "rmse": float(error)}


def transfer_set(kind: str, x: Array, size: int, recipe: Recipe, seed: int) -> Array:
    """Synthetic rows in random order, so that each part of them is a transfer set too."""
    rng = np.random.default_rng(seed)
    if kind == "random":
        return np.stack([rng.choice(column, size) for column in x.T], axis=1)
    if kind == "munge":
        made = munge(x, size, recipe.probability, recipe.local_variance, seed=seed)
    else:
        made = oversample_with_noise(x, size, recipe.noise_stddev, seed=seed)
    rows = np.concatenate(list(made.batch(10_000).as_numpy_iterator()))
    return rng.permutation(rows)


class Study:
    """The split, the ensemble, and the students that are in the results."""

    def __init__(self, recipe: Recipe, folder: pathlib.Path) -> None:
        self.recipe, self.split = recipe, load(recipe)
        self.teacher = ensemble(self.split, recipe, folder)
        self.of_test = probabilities(self.teacher, self.split.x_test)
        self.of_validation = probabilities(self.teacher, self.split.x_validation)
        saved = results.load(NAME)
        same = saved is not None and saved["budget"]["recipe"] == dataclasses.asdict(recipe)
        self.cells: dict[str, Any] = saved["results"]["cells"] if saved and same else {}

    def run(self, seeds: int) -> None:
        """Trains what is not yet in the results."""
        for seed in range(seeds):
            self._cell(f"alone/{seed}", self.split.x, self.split.y, False, seed)
            for kind, sizes in SIZES_OF.items():
                if all(f"{kind}/{size}/{seed}" in self.cells for size in sizes):
                    continue
                rows = transfer_set(kind, self.split.x, max(sizes), self.recipe, seed)
                labels = probabilities(self.teacher, rows)
                for size in sizes:
                    self._cell(f"{kind}/{size}/{seed}", rows[:size], labels[:size], True, seed)

    def _cell(self, key: str, x: Array, y: Array, from_teacher: bool, seed: int) -> None:
        if key in self.cells:
            return
        start, split = time.perf_counter(), self.split
        wanted = self.of_validation if from_teacher else split.y_validation
        validation = (split.x_validation, wanted)
        model, found = train(self.recipe.student_units, x, y, validation, self.recipe, seed)
        outputs = model.predict(split.x_test, batch_size=1_000, verbose=0)
        found |= judge(outputs, split.y_test)
        found["rmse_to_ensemble"] = judge(outputs, self.of_test)["rmse"]
        self.cells[key] = {**found, "seconds": round(time.perf_counter() - start, 1)}
        self.save()
        print(key, self.cells[key], flush=True)

    def save(self) -> None:
        """Writes what there is so far."""
        split = self.split
        members = [
            judge(model.predict(split.x_test, batch_size=1_000, verbose=0), split.y_test)
            for model in self.teacher.teachers
        ]
        parameters = {
            "ensemble": self.teacher.count_params(),
            "student": network(split.x.shape[1], self.recipe.student_units).count_params(),
        }
        results.save(
            NAME,
            seed=0,
            budget={"recipe": dataclasses.asdict(self.recipe), "test_rows": len(split.x_test)},
            results={
                "parameters": parameters,
                "ensemble": judge(self.of_test, split.y_test),
                "members": members,
                "cells": self.cells,
                "curves": curves(self.cells),
            },
        )

    def choose(self) -> None:
        """Prints the squared error on the validation rows for several p and s."""
        for p in (0.2, 0.5):
            for s in (1.0, 5.0):
                recipe = dataclasses.replace(self.recipe, probability=p, local_variance=s)
                rows = transfer_set("munge", self.split.x, 10_000, recipe, 0)
                validation = (self.split.x_validation, self.of_validation)
                labels = probabilities(self.teacher, rows)
                _, found = train(recipe.student_units, rows, labels, validation, recipe, 0)
                print(f"p={p} s={s}: {found}", flush=True)


def curves(cells: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard error over seeds by kind and size; `alone` has no size."""
    groups: dict[str, list[dict[str, float]]] = {}
    for key, cell in cells.items():
        groups.setdefault(key.rpartition("/")[0], []).append(cell)
    return {
        group: {
            measure: mean_and_error([one[measure] for one in found])
            for measure in ("accuracy", "rmse", "rmse_to_ensemble", "updates")
        }
        for group, found in groups.items()
    }


def mean_and_error(values: list[float]) -> list[float]:
    """Mean and its standard error, 0 for a single value."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return [statistics.mean(values), error]


def show(found: dict[str, Any]) -> None:
    """Prints the curves as a table."""
    table = Table(title="MNIST in 7×7 attributes: nets of 32 units on 10,000 test digits")
    for name in ("trained on", "rows", "accuracy %", "RMSE", "RMSE to the ensemble"):
        table.add_column(name, justify="left" if name == "trained on" else "right")
    whole, members = found["ensemble"], found["members"]
    single = [statistics.mean(m[measure] for m in members) for measure in ("accuracy", "rmse")]
    table.add_row(
        "(the ensemble)", "", f"{100 * whole['accuracy']:.2f}", f"{whole['rmse']:.4f}", ""
    )
    table.add_row("(one of its nets)", "", f"{100 * single[0]:.2f}", f"{single[1]:.4f}", "")
    for group, curve in found["curves"].items():
        kind, _, size = group.partition("/")
        title = TITLES.get(kind, "the labelled rows")
        accuracy, rmse, distance = (curve[m] for m in ("accuracy", "rmse", "rmse_to_ensemble"))
        table.add_row(
            title,
            f"{int(size):,}" if size else "4,000",
            f"{100 * accuracy[0]:.2f} ± {100 * accuracy[1]:.2f}",
            f"{rmse[0]:.4f} ± {rmse[1]:.4f}",
            f"{distance[0]:.4f} ± {distance[1]:.4f}",
        )
    Console().print(table)


def main(_: list[str]) -> None:
    """Trains what is not yet in the results, then prints the table."""
    study = Study(Recipe(), pathlib.Path(_WORK.value))
    if _CHOOSE.value:
        study.choose()
        return
    study.run(_SEEDS.value)
    saved = results.load(NAME)
    if saved is not None:
        show(saved["results"])


if __name__ == "__main__":
    app.run(main)
