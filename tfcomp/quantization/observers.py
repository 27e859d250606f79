"""Observers: what range the values of a tensor take during training."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="tfcomp")
class MovingAverageRange(keras.layers.Layer):
    """Keeps a moving average of the least and greatest value of each batch.

    low ← m·low + (1 − m)·min(0, min x), high ← m·high + (1 − m)·max(0, max x), with
    m = min(momentum, n / (n + 1)) after n batches: the first batch sets the range, the next
    ones are averaged evenly, and in the long run the average is exponential.

    Args:
        momentum: Long-run weight of the past, in [0, 1).
        freeze_step: Number of batches after which the range stays as it is; None for never.
        non_negative: Whether the values cannot be negative, so that `low` is 0 and need not be
            looked for.

    Example:
        >>> import keras
        >>> observer = MovingAverageRange()
        >>> observer.build((None, 2))
        >>> low, high = observer.update(keras.ops.convert_to_tensor([[-1.0, 3.0]]))
        >>> float(low), float(high), int(observer.count)
        (-1.0, 3.0, 1)

    Jacob et al. 2017, arXiv:1712.05877, section 3.1.
    """

    def __init__(
        self,
        momentum: float = 0.99,
        freeze_step: int | None = None,
        non_negative: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.momentum = momentum
        self.freeze_step = freeze_step
        self.non_negative = non_negative

    def build(self, input_shape: Any) -> None:
        def scalar(name: str, dtype: str, aggregation: str) -> Any:
            return self.add_weight(
                name=name,
                shape=(),
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                autocast=False,
                aggregation=aggregation,
            )

        self.low = scalar("low", "float32", "mean")
        self.high = scalar("high", "float32", "mean")
        self.count = scalar("count", "int32", "only_first_replica")

    def update(self, inputs: Any) -> tuple[Any, Any]:
        """Takes a batch in; returns the new `low` and `high`, through which no gradient goes."""
        ops = keras.ops
        seen = ops.cast(self.count, "float32")
        keep = ops.minimum(self.momentum, seen / (seen + 1.0))
        if self.freeze_step is not None:
            keep = ops.where(seen >= self.freeze_step, 1.0, keep)
        values = ops.stop_gradient(inputs)
        high = ops.maximum(ops.cast(ops.max(values), "float32"), 0.0)
        high = keep * self.high + (1.0 - keep) * high
        self.high.assign(high)
        low = ops.zeros((), "float32")
        if not self.non_negative:
            low = ops.minimum(ops.cast(ops.min(values), "float32"), 0.0)
            low = keep * self.low + (1.0 - keep) * low
            self.low.assign(low)
        self.count.assign_add(1)
        return low, high

    def call(self, inputs: Any) -> Any:
        self.update(inputs)
        return inputs

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "freeze_step": self.freeze_step,
            "non_negative": self.non_negative,
        }
