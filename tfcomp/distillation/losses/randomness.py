"""Random numbers that a loss draws while training."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


class RandomLayer(keras.layers.Layer):
    """A layer that draws random numbers, whose state is saved with whatever holds it.

    It computes in the precision of what it is given, whatever policy is in force.

    Args:
        seed: An integer, or None.
        **kwargs: Passed to `keras.layers.Layer`.

    Example:
        >>> class Noise(RandomLayer):
        ...     def call(self, inputs):
        ...         return inputs + tf.random.stateless_normal(inputs.shape, self.next_seed())
        >>> noise = Noise(seed=1)
        >>> zeros = tf.zeros((2, 3))
        >>> bool(tf.reduce_any(noise(zeros) == noise(zeros)))
        False
    """

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def next_seed(self) -> Any:
        """A seed that no step and no replica has had."""
        context = tf.distribute.get_replica_context()
        replica = 0 if context is None else context.replica_id_in_sync_group
        seed = tf.cast(self.seed_generator.next(), "int32")
        return tf.random.experimental.stateless_fold_in(seed, tf.cast(replica, "int32"))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the inputs."""
        return input_shape

    # Keras saves weights, among which it does not count the state of random numbers.
    def save_own_variables(self, store: Any) -> None:
        """Writes the random state."""
        store["random_state"] = keras.ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        """Reads the random state."""
        self.seed_generator.state.assign(store["random_state"])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "seed": self.seed}


def of_replica(seed: Any) -> Any:
    """A seed of shape (2,) made another on each of several replicas; one alone keeps it."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return seed
    replica = tf.cast(context.replica_id_in_sync_group, "int32")
    return tf.random.experimental.stateless_fold_in(seed, replica)
