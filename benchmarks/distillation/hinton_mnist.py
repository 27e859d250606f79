"""MNIST as in the paper that gave distillation its name.

A teacher of 2×1200 rectified units with dropout, bounded weights and images shifted by up to two
pixels; a student of 2×800 without any regularisation, trained alone and with the teacher's soft
targets for the 60,000 plain training images. Then the student that has never seen a 3: the
transfer set lacks the digit, and afterwards the bias of class 3 is raised.

The test set only judges. The recipe was chosen with `--validate`, which takes the last 10,000
training images from every model and judges on them. The bias of class 3 is chosen on the same
10,000 images, all digits, which in this part no student is trained on; the teacher may have been.
Epochs are fixed and the last weights are taken.

Hinton, Vinyals, Dean (2015), Distilling the Knowledge in a Neural Network, arXiv:1503.02531,
section 3. Resumable: finished models in the folder are kept, the one in training goes on from its
last epoch (the order of images starts anew).

    TFCOMP_DATA=DIR python -m benchmarks.distillation.hinton_mnist [--work=DIR] [--seeds=3]
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import results
from benchmarks.distillation.mnist import Images, Labels, Split, batches, jitter, load
from tfcomp.distillation import Distiller, KnowledgeDistillation, cache_teacher
from tfcomp.errors import TfcompError
from tfcomp.files import replacing, write_json

_WORK = flags.DEFINE_string("work", "build/hinton_mnist", "folder for the models")
_SEEDS = flags.DEFINE_integer("seeds", 3, "how many students of each kind", 1)
_VALIDATE = flags.DEFINE_boolean("validate", False, "judge on held-out training images")
_TEACHER_EPOCHS = flags.DEFINE_integer("teacher_epochs", 90, "another length is saved apart", 1)
_TEACHER_ONLY = flags.DEFINE_boolean("teacher_only", False, "stop after the teacher")

NAME = "hinton_mnist"
THREE = 3
PAPER = {
    "teacher": 67,
    "alone": 146,
    "distilled": 74,
    "without 3": 206,
    "without 3, on 3s": 133,
    "corrected": 109,
    "corrected, on 3s": 14,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What was fixed before the test set was looked at."""

    batch_size: int = 256
    teacher_units: int = 1200
    teacher_epochs: int = 90
    teacher_learning_rate: float = 1e-3
    input_dropout: float = 0.0
    hidden_dropout: float = 0.5
    max_norm: float = 3.0
    shift_pixels: int = 2
    student_units: int = 800
    student_epochs: int = 50
    student_learning_rate: float = 3e-3
    temperature: float = 20.0
    student_loss_weight: float = 0.1
    precision: str = "mixed_bfloat16"


def teacher_network(recipe: Recipe) -> keras.Model:
    """Two hidden layers with dropout, each unit's incoming weights bounded in length."""
    layers: list[keras.layers.Layer] = [
        keras.layers.Flatten(),
        keras.layers.Dropout(recipe.input_dropout),
    ]
    for _ in range(2):
        bound = keras.constraints.MaxNorm(recipe.max_norm)
        layers += [
            keras.layers.Dense(recipe.teacher_units, "relu", kernel_constraint=bound),
            keras.layers.Dropout(recipe.hidden_dropout),
        ]
    return _network(layers, "teacher")


def student_network(recipe: Recipe) -> keras.Model:
    """Two hidden layers and nothing else."""
    hidden = [keras.layers.Dense(recipe.student_units, "relu") for _ in range(2)]
    return _network([keras.layers.Flatten(), *hidden], "student")


def _network(layers: list[keras.layers.Layer], name: str) -> keras.Model:
    logits = keras.layers.Dense(10, dtype="float32")
    return keras.Sequential([keras.Input((28, 28)), *layers, logits], name=name)


def fit(
    trainer: keras.Model, data: tf.data.Dataset, epochs: int, rate: float, backup: pathlib.Path
) -> None:
    """Adam with a learning rate that falls to zero as a cosine; goes on where it was stopped."""
    trainer.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(rate, epochs * int(data.cardinality()))
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    tell = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: print(
            f"{backup.name}: epoch {epoch + 1}/{epochs}",
            " ".join(f"{key} {value:.4f}" for key, value in logs.items()),
            flush=True,
        )
    )
    resume = keras.callbacks.BackupAndRestore(backup)
    trainer.fit(data, epochs=epochs, verbose=0, callbacks=[resume, tell])


def train_teacher(split: Split, recipe: Recipe, backup: pathlib.Path) -> keras.Model:
    """The teacher, on shifted images."""
    model = teacher_network(recipe)
    data = batches((tf.constant(split.x), tf.constant(split.y)), recipe.batch_size, seed=0)
    shifted = data.map(lambda x, y: (jitter(x, recipe.shift_pixels), y))
    fit(model, shifted, recipe.teacher_epochs, recipe.teacher_learning_rate, backup)
    return model


def train_alone(split: Split, recipe: Recipe, seed: int, backup: pathlib.Path) -> keras.Model:
    """A student that has the labels only."""
    model = student_network(recipe)
    data = batches((tf.constant(split.x), tf.constant(split.y)), recipe.batch_size, seed)
    fit(model, data, recipe.student_epochs, recipe.student_learning_rate, backup)
    return model


def distil(data: tf.data.Dataset, recipe: Recipe, backup: pathlib.Path) -> keras.Model:
    """A student that has the labels, and in the data the teacher's outputs."""
    model = student_network(recipe)
    distiller = Distiller(
        None,
        model,
        KnowledgeDistillation(recipe.temperature, teacher_from_logits=True),
        student_loss_weight=recipe.student_loss_weight,
    )
    fit(distiller, data, recipe.student_epochs, recipe.student_learning_rate, backup)
    return model


def ask_teacher(teacher: keras.Model, split: Split) -> Any:
    """The transfer set with the teacher's outputs, as one element."""
    everything = tf.data.Dataset.from_tensors((split.x, split.y))
    return next(iter(cache_teacher(everything, teacher)))


def logits_of(model: keras.Model, x: Images) -> Images:
    """What the model says, (samples, 10)."""
    return model.predict(x, batch_size=1000, verbose=0)


def errors(logits: Images, y: Labels, only: int | None = None) -> int:
    """How many are wrong, of all or of one digit."""
    wrong = np.argmax(logits, axis=-1) != y
    return int(np.sum(wrong if only is None else wrong & (y == only)))


def best_bias(logits: Images, y: Labels, digit: int) -> float:
    """What to add to one class's logits so that the fewest samples are wrong.

    The errors change only where the digit overtakes a sample's best other class, hence every
    bias between two such places is as good; the middle of the best stretch is taken (the
    longest, if several are best), among biases ≥ 0.
    """
    rest = np.delete(logits, digit, axis=1)
    others = np.delete(np.arange(logits.shape[1]), digit)
    # With a bias above `needed` the sample is called `digit`.
    needed = rest.max(axis=1).astype(np.float64) - logits[:, digit]
    right_below = others[rest.argmax(axis=1)] == y
    edges = np.unique(np.concatenate([[0.0], needed[needed > 0]]))
    if len(edges) < 2:
        return 0.0
    middles = (edges[:-1] + edges[1:]) / 2
    # Each sample adds 1 to the right ones where it is right: above `needed`, or below it.
    gain = np.where(y == digit, 1, 0) - np.where(right_below, 1, 0)
    order = np.argsort(needed)
    passed = np.searchsorted(needed[order], middles)
    right = np.concatenate([[0], np.cumsum(gain[order])])[passed]
    best = np.flatnonzero(right == right.max())
    return float(middles[best[np.argmax(edges[best + 1] - edges[best])]])


def correct(model: keras.Model, digit: int, bias: float) -> None:
    """Adds to the bias of one class."""
    kernel, biases = model.layers[-1].get_weights()
    biases[digit] += bias
    model.layers[-1].set_weights([kernel, biases])


def judge_without_three(model: keras.Model, split: Split) -> dict[str, float]:
    """Errors before and after the bias of class 3 is corrected on held-out training images."""
    _, x, y = split.without(THREE)
    before = logits_of(model, split.x_judge)
    bias = best_bias(logits_of(model, x), y, THREE)
    correct(model, THREE, bias)
    after = logits_of(model, split.x_judge)
    correct(model, THREE, -bias)
    threes = int(np.sum(split.y_judge == THREE))
    wrong = errors(after, split.y_judge, THREE)
    return {
        "without 3": errors(before, split.y_judge),
        "without 3, on 3s": errors(before, split.y_judge, THREE),
        "corrected": errors(after, split.y_judge),
        "corrected, on 3s": wrong,
        "share of 3s right": 1 - wrong / threes,
        "bias": bias,
    }


class Workshop:
    """Trains models into a folder, each once."""

    def __init__(self, folder: pathlib.Path, recipe: Recipe, validate: bool) -> None:
        self.folder = folder
        description = {**dataclasses.asdict(recipe), "validate": validate}
        stamp = folder / "recipe.json"
        if stamp.exists() and json.loads(stamp.read_text()) != description:
            raise TfcompError(
                f"{folder} holds models of another recipe: expected {description}, received "
                f"{stamp.read_text()}. Choose another --work."
            )
        write_json(stamp, description)
        self.seconds: dict[str, float] = {}

    def model(self, name: str, seed: int, train: Any) -> keras.Model:
        """The finished model of that name, or the one that `train(backup)` returns."""
        path = self.folder / f"{name}.keras"
        if path.exists():
            return keras.saving.load_model(path, compile=False)
        keras.utils.set_random_seed(seed)
        start = time.perf_counter()
        model = train(self.folder / "backup" / name)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        with replacing(path) as temporary:
            model.save(temporary)
        return model


def run_seed(
    seed: int, shop: Workshop, split: Split, cached: Any, cached_without: Any, recipe: Recipe
) -> dict[str, float]:
    """The three students of one seed, judged."""
    first = 1000 * (seed + 1)
    alone = shop.model(f"alone{seed}", first, lambda b: train_alone(split, recipe, first, b))
    distilled, without = (
        shop.model(
            f"{name}{seed}",
            first,
            lambda b, of=of: distil(batches(of, recipe.batch_size, first), recipe, b),
        )
        for name, of in (("distilled", cached), ("without_three", cached_without))
    )
    return {
        "alone": errors(logits_of(alone, split.x_judge), split.y_judge),
        "distilled": errors(logits_of(distilled, split.x_judge), split.y_judge),
        **judge_without_three(without, split),
    }


def show(found: dict[str, Any], judged_on: str) -> None:
    """Ours beside the paper."""
    reach = {"teacher": "≤ 75", "distilled": "≤ 80", "share of 3s right": "≥ 0.98"}
    table = Table(title=f"MNIST, errors on {judged_on}")
    for name in ("model", "paper", "mean", "each seed", "reach"):
        table.add_column(name, justify="left" if name == "model" else "right")
    table.add_row("teacher", str(PAPER["teacher"]), str(found["teacher"]), "", reach["teacher"])
    seeds = list(found["by_seed"].values())
    for name, mean in found["mean"].items():
        exact = name in ("bias", "share of 3s right")
        each = ", ".join(f"{seed[name]:.4f}" if exact else str(seed[name]) for seed in seeds)
        paper = {"bias": "3.5", "share of 3s right": "0.986"}.get(name, str(PAPER.get(name)))
        table.add_row(
            name, paper, f"{mean:.4f}" if exact else f"{mean:.1f}", each, reach.get(name, "")
        )
    Console().print(table)


def main(_: list[str]) -> None:
    """Trains what is missing, judges, saves and prints."""
    validate, recipe = _VALIDATE.value, Recipe(teacher_epochs=_TEACHER_EPOCHS.value)
    keras.config.set_dtype_policy(recipe.precision)
    split = load(validate)
    shop = Workshop(pathlib.Path(_WORK.value), recipe, validate)
    teacher = shop.model("teacher", 0, lambda backup: train_teacher(split, recipe, backup))
    found: dict[str, Any] = {"teacher": errors(logits_of(teacher, split.x_judge), split.y_judge)}
    if _TEACHER_ONLY.value:
        print(found)
        return
    cached = ask_teacher(teacher, split)
    cached_without = ask_teacher(teacher, split.without(THREE)[0])
    by_seed: dict[str, dict[str, float]] = {}
    for seed in range(_SEEDS.value):
        by_seed[str(seed)] = run_seed(seed, shop, split, cached, cached_without, recipe)
        print(seed, by_seed[str(seed)], flush=True)
    names = by_seed["0"]
    mean = {name: statistics.mean(one[name] for one in by_seed.values()) for name in names}
    found |= {"by_seed": by_seed, "mean": mean, "paper": PAPER}
    apart = "" if recipe == Recipe() else f"_{recipe.teacher_epochs}"
    results.save(
        f"distillation_{NAME}" + apart + ("_validation" if validate else ""),
        seed=0,
        budget={"seeds": _SEEDS.value, **dataclasses.asdict(recipe)},
        results=found,
    )
    judged = "10,000 held-out training images" if validate else "the 10,000 test images"
    show(found, judged)


if __name__ == "__main__":
    app.run(main)
