"""Hinton's MNIST with a transfer set of shifted images, which the paper's students never see.

The teacher of `hinton_mnist` is asked about each training image in all 25 places that it was
trained on, up to two pixels either way on both axes, once; a student gets another of them in each
epoch, and is trained for longer. Everything else is as in `hinton_mnist`, the student without any
3 too. Beyer et al. (2021), Knowledge distillation: A good teacher is patient and consistent,
arXiv:2106.05237.

The test set only judges; epochs were chosen on the last 10,000 training images, with `--validate`.
Resumable, as `hinton_mnist` is; a teacher in the folder is taken.

    TFCOMP_DATA=DIR python -m benchmarks.distillation.hinton_shifted [--work=DIR] [--seeds=3]
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import statistics
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import results
from benchmarks.distillation.hinton_mnist import (
    PAPER,
    THREE,
    Recipe,
    Workshop,
    distil,
    errors,
    judge_without_three,
    logits_of,
    train_teacher,
)
from benchmarks.distillation.mnist import Images, Split, batches, load, shift
from tfcomp.distillation import DistillationInputs

# --work, --seeds and --validate are those of hinton_mnist.
_EPOCHS = flags.DEFINE_integer("student_epochs", 150, "of each student", 1)

NAME = "hinton_mnist_shifted"


@dataclasses.dataclass(frozen=True)
class ShiftedRecipe(Recipe):
    """The recipe of the paper's experiment, with longer training of the students."""

    student_epochs: int = 150


def places(pixels: int) -> tf.Tensor:
    """All the shifts, [places, 2], each from 0 to twice `pixels`."""
    return tf.constant(list(itertools.product(range(2 * pixels + 1), repeat=2)), tf.int32)


def ask_everywhere(teacher: keras.Model, images: Images, pixels: int) -> Images:
    """What the teacher says of each image in each place, [samples, places, classes]."""
    answers = []
    for place in places(pixels):
        offsets = tf.broadcast_to(place, (len(images), 2))
        answers.append(logits_of(teacher, shift(images, offsets, pixels).numpy()))
    return np.stack(answers, axis=1)


def shifted(teacher: keras.Model, split: Split, recipe: Recipe, seed: int) -> tf.data.Dataset:
    """Batches in which each image is in another place in each epoch, with the teacher's answer."""
    pixels = recipe.shift_pixels
    answers = ask_everywhere(teacher, split.x, pixels)
    all_places = places(pixels)

    def draw(x: Any, y: Any, said: Any) -> Any:
        chosen = tf.random.uniform((tf.shape(x)[0],), 0, len(all_places), tf.int32)
        moved = shift(x, tf.gather(all_places, chosen), pixels)
        outputs = tf.gather(said, chosen, batch_dims=1)
        return DistillationInputs(moved, teacher_outputs=outputs), y

    everything = tuple(map(tf.constant, (split.x, split.y, answers)))
    return batches(everything, recipe.batch_size, seed).map(draw)


def run_seed(
    seed: int, shop: Workshop, split: Split, teacher: keras.Model, recipe: Recipe
) -> dict[str, float]:
    """Both students of one seed, judged."""
    first = 1000 * (seed + 1)
    less, _, _ = split.without(THREE)
    distilled, without = (
        shop.model(
            f"{name}{seed}",
            first,
            lambda b, of=of: distil(shifted(teacher, of, recipe, first), recipe, b),
        )
        for name, of in (("distilled", split), ("without_three", less))
    )
    found = errors(logits_of(distilled, split.x_judge), split.y_judge)
    return {"distilled": found, **judge_without_three(without, split)}


def main(_: list[str]) -> None:
    """Trains what is missing, judges, saves and prints."""
    validate, recipe = flags.FLAGS.validate, ShiftedRecipe(student_epochs=_EPOCHS.value)
    keras.config.set_dtype_policy(recipe.precision)
    split = load(validate)
    shop = Workshop(pathlib.Path(flags.FLAGS.work), recipe, validate)
    teacher = shop.model("teacher", 0, lambda backup: train_teacher(split, recipe, backup))
    by_seed: dict[str, dict[str, float]] = {}
    for seed in range(flags.FLAGS.seeds):
        by_seed[str(seed)] = run_seed(seed, shop, split, teacher, recipe)
        print(seed, by_seed[str(seed)], flush=True)
    mean = {name: statistics.mean(one[name] for one in by_seed.values()) for name in by_seed["0"]}
    results.save(
        f"distillation_{NAME}" + ("_validation" if validate else ""),
        seed=0,
        budget={"seeds": flags.FLAGS.seeds, **dataclasses.asdict(recipe)},
        results={
            "teacher": errors(logits_of(teacher, split.x_judge), split.y_judge),
            "by_seed": by_seed,
            "mean": mean,
            "paper": PAPER,
        },
    )


if __name__ == "__main__":
    app.run(main)
