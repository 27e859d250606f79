"""What a step of distillation costs beside the work that it cannot do without.

On one core, batch 128 of 28×28×1, a student and a teacher of four times its multiplications:

- the Distiller's step against one compiled function that runs the student's plain training step
  and the teacher forward; keras.distillation with a logits and a feature loss beside it;
- with a cached teacher against the student's plain training step.

    python -m benchmarks.distiller_step [--rounds=30] [--steps=5] [--seed=0]
"""

from __future__ import annotations

import os

# Before TensorFlow starts its threads: one core, the same for all that is compared.
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

from typing import Any  # noqa: E402

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402

from benchmarks import results  # noqa: E402
from benchmarks.timing import Step, interleaved  # noqa: E402
from tfcomp.distillation import Distiller, KnowledgeDistillation, cache_teacher  # noqa: E402

_ROUNDS = flags.DEFINE_integer("rounds", 30, "how often each is timed", 2)
_STEPS = flags.DEFINE_integer("steps", 5, "steps in one timing", 1)
_SEED = flags.DEFINE_integer("seed", 0, "of weights and data", 0)

NAME = "distiller_step"
BATCH = 128
BATCHES = 8
REACH = {"Distiller": 1.05, "Distiller and a feature loss": 1.05, "cached teacher": 1.03}


def classifier(width: int, name: str) -> keras.Model:
    """A small CNN: three convolutions, an embedding of fixed width, ten logits."""
    x = inputs = keras.Input((28, 28, 1))
    for block, channels in enumerate((width, 2 * width, 4 * width)):
        x = keras.layers.Conv2D(
            channels, 3, strides=1 if block == 0 else 2, padding="same", use_bias=False
        )(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(64, "relu", name="embedding")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x), name=name)


class WithTeacher(keras.Model):
    """The student's plain step and the teacher forward, with nothing between them."""

    def __init__(self, teacher: keras.Model, student: keras.Model) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student
        teacher.trainable = False
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.student(inputs, training=training)

    def train_step(self, data: Any) -> Any:
        outputs = self.teacher(data[0], training=False)
        # Returned, or else TensorFlow would leave the teacher out.
        return {**super().train_step(data), "teacher": tf.reduce_mean(outputs)}


def stepper(model: keras.Model, dataset: tf.data.Dataset) -> Step:
    """One step of the function that `fit` runs."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss=loss, metrics=["accuracy"], jit_compile=False)
    model.fit(dataset.take(1), verbose=0, shuffle=False)
    batches = iter(dataset.repeat())
    return lambda: float(model.train_function(batches)["loss"])


def teacher() -> keras.Model:
    return classifier(32, "teacher")


def student() -> keras.Model:
    return classifier(16, "student")


def keras_distiller() -> keras.Model:
    losses = [
        keras.distillation.LogitsDistillation(4.0, loss=keras.losses.KLDivergence()),
        keras.distillation.FeatureDistillation("mse", "embedding", "embedding"),
    ]
    return keras.distillation.Distiller(teacher(), student(), losses)


def our_distiller(feature: bool) -> keras.Model:
    losses: list[Any] = [KnowledgeDistillation(4.0)]
    if feature:
        losses.append(keras.distillation.FeatureDistillation("mse", "embedding", "embedding"))
    return Distiller(teacher(), student(), losses)


def main(_: list[str]) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(_SEED.value)
    rng = np.random.default_rng(_SEED.value)
    x = rng.random((BATCH * BATCHES, 28, 28, 1), dtype="float32")
    data = tf.data.Dataset.from_tensor_slices((x, rng.integers(0, 10, len(x)))).batch(BATCH)
    budget = {"rounds": _ROUNDS.value, "steps": _STEPS.value}
    running = interleaved(
        stepper(WithTeacher(teacher(), student()), data),
        {
            "Distiller": stepper(our_distiller(feature=False), data),
            "Distiller and a feature loss": stepper(our_distiller(feature=True), data),
            "keras.distillation, logits and feature loss": stepper(keras_distiller(), data),
        },
        **budget,
    )
    results.print_ratios("against student step + teacher forward, one core", running, REACH)
    cached = interleaved(
        stepper(student(), data),
        {"cached teacher": stepper(our_distiller(False), cache_teacher(data, teacher()))},
        **budget,
    )
    results.print_ratios("against the plain student step, one core", cached, REACH)
    path = results.save(
        NAME,
        seed=_SEED.value,
        budget={**budget, "batch": BATCH, "cores": 1},
        results={"running": running, "cached": cached},
    )
    print(path)


if __name__ == "__main__":
    app.run(main)
