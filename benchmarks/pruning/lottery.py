"""Lottery tickets of LeNet-300-100 on MNIST (Frankle and Carbin 2018, arXiv:1803.03635).

The paper's recipe: Adam at 1.2e-3, batches of 60, 5,000 training images held out; in each round a
fifth of the hidden layers' weights goes and a tenth of the output layer's, by magnitude in each
layer. The tickets, and the same masks on new random weights, are trained again while the held-out
loss is watched every 100 steps; its smallest value is the paper's early-stopping step. The test
set judges at that step and at the end. One JSON for each training; finished ones are kept, and so
are a search's rounds, in `--work`.

    TFCOMP_DATA=DIR python -m benchmarks.pruning.lottery [--seeds=0,1,2] [--work=DIR]
"""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import results
from benchmarks.distillation.mnist import Split, batches, load
from tfcomp.callbacks import PruneWeights
from tfcomp.pruning import Ticket, error_barrier, find_ticket

_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "which seeds to run")
_WORK = flags.DEFINE_string("work", "lottery", "where rounds are kept")

NAME = "pruning_lottery"
BATCH, STEPS, EVERY, HELD_OUT = 60, 20_000, 100, 5_000
# Rounds whose tickets are trained again: about 51, 21 and 3.6 % of the weights.
LEVELS = (3, 7, 15)
LAST = 1 - 0.8 ** max(LEVELS)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(seed: int) -> keras.Model:
    """LeNet-300-100 with the paper's Glorot normal kernels."""
    layers, init = keras.layers, keras.initializers.GlorotNormal
    sizes = (("a", 300, "relu"), ("b", 100, "relu"), ("output", 10, None))
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Flatten(),
            *(
                layers.Dense(size, activation, name=name, kernel_initializer=init(seed=seed + i))
                for i, (name, size, activation) in enumerate(sizes)
            ),
        ],
        name="lenet_300_100",
    )


class Watch(keras.callbacks.Callback):
    """Loss on held-out images and test error, every so many steps."""

    def __init__(self, held_out: tuple[Any, Any], split: Split) -> None:
        super().__init__()
        self.held_out = tuple(map(tf.constant, held_out))
        self.test = (tf.constant(split.x_judge), tf.constant(split.y_judge))
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.errors: list[float] = []
        self._judge: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        model = self.model

        @tf.function
        def judge() -> Any:
            loss = LOSS(self.held_out[1], model(self.held_out[0], training=False))
            found = tf.argmax(model(self.test[0], training=False), axis=-1)
            wrong = tf.cast(found, tf.int64) != tf.cast(self.test[1], tf.int64)
            return loss, tf.reduce_mean(tf.cast(wrong, tf.float32))

        self._judge = judge

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss, error = self._judge()
        self.steps.append((len(self.steps) + 1) * EVERY)
        self.losses.append(float(loss))
        self.errors.append(100 * float(error))


def train(model: keras.Model, split: Split, seed: int, callbacks: list[Any]) -> None:
    """Adam at a constant rate, over the first 55,000 images."""
    x, y = split.x[:-HELD_OUT], split.y[:-HELD_OUT]
    data = batches((tf.constant(x), tf.constant(y)), BATCH, seed).repeat().take(STEPS)
    model.compile(keras.optimizers.Adam(1.2e-3), LOSS, jit_compile=False, steps_per_execution=EVERY)
    model.fit(data, verbose=0, callbacks=callbacks)


def curve(model: keras.Model, split: Split, seed: int, sparse: bool) -> dict[str, Any]:
    """Trains, and tells when the held-out loss was smallest."""
    start = time.process_time()
    watch = Watch((split.x[-HELD_OUT:], split.y[-HELD_OUT:]), split)
    train(model, split, seed, [watch, *([PruneWeights.from_zeros()] if sparse else [])])
    best = int(np.argmin(watch.losses))
    kernels = [w for w in model.get_weights() if w.ndim > 1]
    return {
        "left": sum(int((w != 0).sum()) for w in kernels) / sum(w.size for w in kernels),
        "stop_step": watch.steps[best],
        "stop_error": watch.errors[best],
        "last_error": watch.errors[-1],
        "errors": [round(error, 3) for error in watch.errors[::5]],
        "core_seconds": time.process_time() - start,
    }


def search(split: Split, seed: int) -> Ticket:
    """All rounds of one seed."""

    def score(model: keras.Model) -> float:
        logits = model.predict(split.x[-HELD_OUT:], batch_size=1000, verbose=0)
        return float(np.mean(np.argmax(logits, axis=-1) == split.y[-HELD_OUT:]))

    return find_ticket(
        network(10 * seed),
        lambda model, callbacks: train(model, split, seed, callbacks),
        score,
        LAST,
        scope="local",
        rates={"output": 0.1},
        directory=pathlib.Path(_WORK.value) / f"seed-{seed}",
    )


def barrier(ticket: Ticket, number: int, split: Split, seed: int) -> dict[str, Any]:
    """Whether two copies of a ticket, trained in different orders, end up connected."""
    ends = []
    for order in (seed + 100, seed + 200):
        model = ticket.model(number)
        train(model, split, order, [PruneWeights.from_zeros()] if number else [])
        ends.append(model)

    def error(model: keras.Model) -> float:
        logits = model.predict(split.x_judge, batch_size=1000, verbose=0)
        return 100 * float(np.mean(np.argmax(logits, axis=-1) != split.y_judge))

    return error_barrier(*ends, error, points=11).to_dict()


def run(name: str, seed: int, make: Callable[[], dict[str, Any]]) -> None:
    """Makes and keeps a result that is not there yet."""
    name = f"{NAME}/{name}-{seed}"
    if results.load(name) is not None:
        return
    found = make()
    budget = {"batch": BATCH, "steps": STEPS, "held_out": HELD_OUT, "levels": list(LEVELS)}
    results.save(name, seed=seed, budget=budget, results=found)
    brief = {key: value for key, value in found.items() if isinstance(value, (int, float))}
    print(name, brief, flush=True)


def perform(split: Split, seed: int) -> None:
    """The dense network, the search, and the trainings of its tickets and their controls."""
    run("dense", seed, lambda: curve(network(10 * seed), split, seed, sparse=False))
    ticket = search(split, seed)
    print(ticket, flush=True)

    def one(number: int, fresh: bool) -> dict[str, Any]:
        model = ticket.reinitialized(1000 + seed, number) if fresh else ticket.model(number)
        return curve(model, split, seed, sparse=True)

    for number in LEVELS:
        run(f"ticket-{number}", seed, functools.partial(one, number, fresh=False))
        run(f"random-{number}", seed, functools.partial(one, number, fresh=True))
    for number in (0, LEVELS[1]) if seed == 0 else ():
        run(f"barrier-{number}", seed, functools.partial(barrier, ticket, number, split, seed))


def main(_: list[str]) -> None:
    split = load(validate=False)
    for seed in map(int, _SEEDS.value):
        perform(split, seed)


if __name__ == "__main__":
    app.run(main)
