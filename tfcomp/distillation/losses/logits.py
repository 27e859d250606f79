"""Losses on logits: squares of their differences, from steady and from noisy teachers."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfcomp.distillation.losses.arguments import weight
from tfcomp.distillation.losses.randomness import RandomLayer
from tfcomp.distillation.losses.response_loss import Pair, ResponseLoss
from tfcomp.errors import TfcompError


@keras.saving.register_keras_serializable(package="tfcomp")
class LogitRegression(ResponseLoss):
    """The student regresses on the teacher's logits.

    ½‖z_s − z_t‖², summed over the classes, averaged over positions, summed over outputs.

    A softmax gives away its logits, log p, up to a constant per sample. Where either model ends
    in softmax, both logits are therefore centred, their mean over the classes taken off: this is
    ½·min_c ‖z_s − z_t − c‖², the smallest loss over that constant. Where both models give
    logits nothing is taken off, as in the paper. Probabilities below 1e-30 count as that.

    The paper speeds up a student with one wide layer by a linear bottleneck in front of it, k
    units that factorise its matrix: `Dense(k, use_bias=False)` before the wide layer, as in the
    example.

    Args:
        teacher_from_logits: Whether the teacher's outputs are logits. None: read from the
            teacher's last layer when a `Distiller` is made, logits where there is no model.
        student_from_logits: The same for the student.
        name: Name of its metric; by default `logit_regression`.

    Raises:
        TfcompError: If a flag is no bool; at construction of the `Distiller`, if a model's
            ending cannot be read or is neither logits nor softmax.

    Example:
        >>> import keras
        >>> loss = LogitRegression()
        >>> teacher, student = keras.ops.array([[3.0, -1.0]]), keras.ops.array([[1.0, 0.0]])
        >>> float(loss.per_sample(teacher, student)[0])
        2.5
        >>> bottleneck = keras.layers.Dense(8, use_bias=False)  # linear, k = 8
        >>> layers = [bottleneck, keras.layers.Dense(1000, "relu"), keras.layers.Dense(10)]
        >>> student = keras.Sequential([keras.Input((784,)), *layers])
        >>> student.count_params()  # 795,010 without the bottleneck
        25282

    Reference:
        Ba, Caruana (2014), Do Deep Nets Really Need to be Deep?, arXiv:1312.6184.
    """

    def compare(self, pair: Pair) -> Any:
        """Values per sample and position."""
        teacher, student = pair.teacher, pair.student
        if not (pair.teacher_gave_logits and pair.student_gave_logits):
            teacher, student = _centred(teacher), _centred(student)
        return 0.5 * keras.ops.sum(keras.ops.square(student - teacher), axis=-1)


@keras.saving.register_keras_serializable(package="tfcomp")
class NoisyTeacher(LogitRegression):
    """The student regresses on logits that noise multiplies, as if it had many teachers.

    ½‖z_s − (1+ξ)·z_t‖², with ξ ~ N(0, σ²) drawn anew per sample and class in every step. Each
    sample is noisy with the probability a, else ξ = 0.

    Logits of a teacher that ends in softmax are centred first, since (1+ξ)·z_t depends on the
    constant that softmax gives away; what else is centred is told at `LogitRegression`.

    The state of the random numbers is saved with the `Distiller`, so that training goes on as
    if it had not been interrupted. Under several replicas each draws its own noise, so that two
    replicas do not make the update that one makes.

    Args:
        stddev: σ ≥ 0, relative to the logits; to be tuned.
        probability: a in [0, 1]; to be tuned.
        seed: An integer; None to take one from `keras.utils.set_random_seed`.
        teacher_from_logits: As in `LogitRegression`.
        student_from_logits: As in `LogitRegression`.
        name: Name of its metric; by default `noisy_teacher`.

    Raises:
        TfcompError: As `LogitRegression`, and if an argument is out of range.

    Example:
        >>> import keras
        >>> loss = NoisyTeacher(stddev=0.5, probability=1.0, seed=1)
        >>> teacher, student = keras.ops.ones((2, 10)), keras.ops.ones((2, 10))
        >>> bool((loss.per_sample(teacher, student) > 0).numpy().all())
        True

    Reference:
        Sau, Balasubramanian (2016), Deep Model Compression: Distilling Knowledge from Noisy
        Teachers, arXiv:1610.09650.
    """

    def __init__(
        self,
        stddev: float = 0.1,
        probability: float = 0.5,
        seed: int | None = None,
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_from_logits, student_from_logits, name)
        self.stddev = weight("stddev", stddev)
        self.probability = weight("probability", probability, most=1.0)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TfcompError(f"`seed` must be an integer or None. Received: {seed!r}.")
        self.seed = seed
        self._noise = LogitNoise(self.stddev, self.probability, seed)
        self.layers = (self._noise,)

    def compare(self, pair: Pair) -> Any:
        """Values per sample and position."""
        teacher = pair.teacher if pair.teacher_gave_logits else _centred(pair.teacher)
        return super().compare(pair._replace(teacher=self._noise(teacher)))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "stddev": self.stddev,
            "probability": self.probability,
            "seed": self.seed,
            **super().get_config(),
        }


@keras.saving.register_keras_serializable(package="tfcomp")
class LogitNoise(RandomLayer):
    """(1+ξ)·z with ξ ~ N(0, σ²) for the samples that a coin of probability a chooses, else z.

    Args:
        stddev: σ.
        probability: a.
        seed: An integer, or None.
        **kwargs: Passed to `keras.layers.Layer`.
    """

    def __init__(
        self, stddev: float, probability: float, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(seed, **kwargs)
        self.stddev, self.probability = stddev, probability

    def call(self, logits: Any) -> Any:
        """Noisy logits, of the shape of `logits`: (batch, ..., classes)."""
        shape = tf.shape(logits)
        coins = tf.concat([shape[:1], tf.ones_like(shape[1:])], axis=0)
        chosen = tf.random.stateless_uniform(coins, self.next_seed()) < self.probability
        noise = tf.random.stateless_normal(shape, self.next_seed(), dtype=logits.dtype)
        return logits * (1.0 + self.stddev * noise * tf.cast(chosen, logits.dtype))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"stddev": self.stddev, "probability": self.probability}
        return {**super().get_config(), **own}


def _centred(logits: Any) -> Any:
    return logits - keras.ops.mean(logits, axis=-1, keepdims=True)
