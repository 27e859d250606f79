"""SNIP on LeNet-300-100, trained as its authors' program does it, without this library.

Where `benchmarks.pruning.lenets` chooses a recipe of its own, this follows the published program
(Lee et al. 2018, arXiv:1810.02340) step by step, to tell what the paper's figures need:

- Images standardised; a tenth of the training set is spared.
- Weights and biases from a truncated normal scaled by the fan in. The sensitivity |∂L/∂c| of both,
  on one batch of 100; the share that stays is of both together.
- Weights are drawn anew after that, biases are zero.
- 100 images a step; momentum 0.9; a rate of 0.1, a tenth of that after each 25,000 steps; the loss
  has 0.00025·Σw² of what stays added.
- Test error after each 1,000 steps. The program reports the least of the last five checkpoints,
  which looks at the test set; the last one is given too.

250,000 steps in the paper; here 80,000, after which the rate is 1e-4. One JSON for each run.

    TFCOMP_DATA=DIR taskset -c 0 python -m benchmarks.pruning.snip_protocol [--seeds=0,1,2]
"""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from absl import app, flags

from benchmarks import results
from benchmarks.distillation.mnist import Split, load
from benchmarks.pruning.lenets import standardised

# --seeds is that of lenets.

NAME = "pruning_snip_protocol"
SHARES = (0.95, 0.98)
WIDTHS = (784, 300, 100, 10)
BATCH, STEPS, FALLS_AFTER, CHECK = 100, 80_000, 25_000, 1_000
CHECKPOINTS = 5  # as many as TensorFlow 1 keeps, unless told otherwise
RATE, MOMENTUM, DECAY = 0.1, 0.9, 0.00025
Parameters = list[Any]


def run_name(share: float, seed: int) -> str:
    """What the result of a run is called."""
    return f"{NAME}/lenet_300_100-{100 * share:.0f}-{seed}"


def drawn() -> Parameters:
    """Kernels and biases, variance scaled by the fan in; of a bias that is its size."""
    start = keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
    kernels = [start(shape) for shape in itertools.pairwise(WIDTHS)]
    # Of a matrix with one column the fan in is the number of rows.
    return [*kernels, *(keras.ops.reshape(start((n, 1)), (n,)) for n in WIDTHS[1:])]


def logits(parameters: Parameters, x: Any) -> Any:
    """Two hidden layers of ReLU."""
    kernels, biases = parameters[:3], parameters[3:]
    h = tf.reshape(x, (-1, WIDTHS[0]))
    for index, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        h = h @ kernel + bias
        if index < 2:
            h = tf.nn.relu(h)
    return h


def cost(parameters: Parameters, x: Any, y: Any) -> Any:
    """Mean cross-entropy."""
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits(parameters, x)))


def masks_of(parameters: Parameters, x: Any, y: Any, share: float) -> Parameters:
    """1 for the connections of largest |∂L/∂c| at c = 1, biases among them, else 0."""
    switches = [tf.ones_like(one) for one in parameters]
    with tf.GradientTape() as tape:
        tape.watch(switches)
        loss = cost([c * w for c, w in zip(switches, parameters, strict=True)], x, y)
    scores = [np.abs(gradient) for gradient in tape.gradient(loss, switches)]
    flat = np.concatenate([score.reshape(-1) for score in scores])
    stays = np.zeros(flat.size, np.float32)
    stays[np.argsort(-flat, kind="stable")[: round(flat.size * (1 - share))]] = 1
    ends = np.cumsum([score.size for score in scores])[:-1]
    parts = np.split(stays, ends)
    return [tf.constant(m.reshape(s.shape)) for m, s in zip(parts, scores, strict=True)]


class Training:
    """Momentum on what the masks leave."""

    def __init__(self, masks: Parameters) -> None:
        self.masks = masks
        biases = [tf.zeros(n) for n in WIDTHS[1:]]
        self._weights = [tf.Variable(one) for one in [*drawn()[:3], *biases]]
        self._velocities = [tf.Variable(tf.zeros_like(one)) for one in self._weights]

    def left(self) -> Parameters:
        """What the network computes with."""
        return [w * m for w, m in zip(self._weights, self.masks, strict=True)]

    @tf.function(jit_compile=True)
    def step(self, x: Any, y: Any, rate: Any) -> None:
        """v ← 0.9·v + ∂L/∂w and w ← w − rate·v."""
        with tf.GradientTape() as tape:
            left = self.left()
            loss = cost(left, x, y) + DECAY * tf.add_n([tf.reduce_sum(one**2) for one in left])
        gradients = tape.gradient(loss, self._weights)
        for w, v, g in zip(self._weights, self._velocities, gradients, strict=True):
            v.assign(MOMENTUM * v + g)
            w.assign_sub(rate * v)

    def error(self, split: Split) -> float:
        """Wrong images, in percent."""
        found = np.argmax(logits(self.left(), split.x_judge), axis=-1)
        return 100 * float(np.mean(found != split.y_judge))


def batches(rng: np.random.Generator, rows: npt.NDArray[np.int64]) -> Any:
    """The numbers of the images of each step."""
    while True:
        yield from np.split(rng.permutation(rows), len(rows) // BATCH)


def perform(split: Split, share: float, seed: int) -> dict[str, Any]:
    """One network, pruned and trained."""
    start = time.process_time()
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(split.x))[len(split.x) // 10 :]
    order = batches(rng, rows)
    x, y = tf.constant(split.x), tf.constant(split.y.astype(np.int32))
    first = next(order)
    training = Training(masks_of(drawn(), tf.gather(x, first), tf.gather(y, first), share))
    errors = []
    for step in range(STEPS):
        at = next(order)
        rate = tf.constant(RATE * 0.1 ** (step // FALLS_AFTER))
        training.step(tf.gather(x, at), tf.gather(y, at), rate)
        if (step + 1) % CHECK == 0:
            errors.append(training.error(split))
    return {
        "error": errors[-1],
        "best_of_last": min(errors[-CHECKPOINTS:]),
        "best": min(errors),
        "kept": [int(np.sum(mask)) for mask in training.masks],
        "errors": errors,
        "core_seconds": time.process_time() - start,
    }


def main(_: list[str]) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    split = standardised(load(validate=False))
    budget = {"steps": STEPS, "falls_after": FALLS_AFTER, "rate": RATE, "batch": BATCH}
    for share in SHARES:
        for seed in map(int, flags.FLAGS.seeds):
            if results.load(run_name(share, seed)) is None:
                found = perform(split, share, seed)
                results.save(run_name(share, seed), seed=seed, budget=budget, results=found)
        saved = [results.load(run_name(share, int(seed))) for seed in flags.FLAGS.seeds]
        kept = [one["results"] for one in saved if one is not None]
        means = {key: statistics.mean(one[key] for one in kept) for key in ("error", "best")}
        print(share, [f"{one['error']:.2f}" for one in kept], means, flush=True)


if __name__ == "__main__":
    app.run(main)
