"""The two layers of a quantisation-aware model: one rounds activations, one rounds weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfcomp.quantization.grids import fake_quantize, fake_quantize_symmetric
from tfcomp.quantization.observers import MovingAverageRange

# A tensor that stays within this of zero is dead. Its range becomes 1 wide: with the tiny scale
# that it would have otherwise, LiteRT refuses to load the file.
_DEAD = 1e-6


@keras.saving.register_keras_serializable(package="tfcomp")
class FakeQuantize(keras.layers.Layer):
    """Rounds activations to an asymmetric grid, one for the whole tensor, zero on it.

    x̂ = s·(clip(round(x/s) + z, 0, 2^b − 1) − z), (s, z) from the range seen in training.

    Gradient: 1 inside the range, 0 outside (straight-through, arXiv:1308.3432).

    In training each batch first moves the range, then is rounded with it. In inference the
    range is used as it is; before the first training batch nothing is rounded.

    Args:
        num_bits: b, from 2 to 16.
        fixed_range: (low, high) instead of an observed range.
        momentum: Of the moving average, see `MovingAverageRange`.
        delay: Number of training batches in which the range is only observed, nothing rounded.
        freeze_step: Number of training batches after which the range stays; None for never.
        non_negative: Whether the inputs cannot be negative, as after ReLU.

    Shapes: any; the result has the shape and dtype of the input.

    Example:
        >>> import keras
        >>> layer = FakeQuantize(num_bits=2)
        >>> [round(float(v), 4) for v in layer(keras.ops.array([0.0, 0.4, 1.5]), training=True)]
        [0.0, 0.5, 1.5]

    Jacob et al. 2017, arXiv:1712.05877.
    """

    def __init__(
        self,
        num_bits: int = 8,
        fixed_range: tuple[float, float] | None = None,
        momentum: float = 0.99,
        delay: int = 0,
        freeze_step: int | None = None,
        non_negative: bool = False,
        **kwargs: Any,
    ) -> None:
        # Inputs keep their dtype under mixed precision: the ranges are float32 all the same.
        super().__init__(autocast=False, **kwargs)
        self.num_bits = num_bits
        self.fixed_range = None if fixed_range is None else (fixed_range[0], fixed_range[1])
        self.delay = delay
        self.supports_masking = True
        self.observer: MovingAverageRange | None = None
        if fixed_range is None:
            self.observer = MovingAverageRange(momentum, freeze_step, non_negative, name="range")

    def build(self, input_shape: Any) -> None:
        if self.observer is not None:
            self.observer.build(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if self.observer is None:
            assert self.fixed_range is not None
            return fake_quantize(inputs, *self.fixed_range, self.num_bits)
        if training:
            low, high = self.observer.update(inputs)
            if not self.delay:
                return self._rounded(inputs, low, high)
        return keras.ops.cond(
            self.observer.count > self.delay,
            lambda: self._rounded(inputs, self.observer.low, self.observer.high),
            lambda: inputs,
        )

    def _rounded(self, inputs: Any, low: Any, high: Any) -> Any:
        high = keras.ops.where(high - low < _DEAD, low + 1.0, high)
        return fake_quantize(inputs, low, high, self.num_bits)

    @property
    def range(self) -> tuple[float, float] | None:
        """The (low, high) that inference rounds with; None if no training batch was seen."""
        if self.observer is None:
            return self.fixed_range
        if not self.built or int(self.observer.count) <= self.delay:
            return None
        low, high = float(self.observer.low), float(self.observer.high)
        return low, low + 1.0 if high - low < _DEAD else high

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "num_bits": self.num_bits, "delay": self.delay}
        if self.observer is None:
            return {**config, "fixed_range": self.fixed_range}
        observer = self.observer
        return {
            **config,
            "momentum": observer.momentum,
            "freeze_step": observer.freeze_step,
            "non_negative": observer.non_negative,
        }


@keras.saving.register_keras_serializable(package="tfcomp")
class FakeQuantizeWeights(keras.layers.Wrapper):
    """Runs a layer with some of its weights rounded to a symmetric grid.

    ŵ = s·round(w / s), s = max|w| / (2^(b−1) − 1), computed anew in every call. Gradients reach
    w unchanged (straight-through, arXiv:1308.3432). The weights themselves stay as they are:
    ordinary variables of `layer`, which constraints, masks and optimizers act on.

    Args:
        layer: Any layer, `keras.layers.Conv2D` for one.
        axes: For each variable to round, by attribute name, the dimensions that have a scale
            for each index: `{"kernel": (-1,)}` for one per output channel, `{"kernel": ()}`
            for one in all.
        num_bits: b, from 2 to 16.

    Shapes: those of `layer`.

    Example:
        >>> import keras
        >>> layer = FakeQuantizeWeights(keras.layers.Dense(2, use_bias=False), {"kernel": ()})
        >>> layer.build((None, 1)); layer.kernel.assign([[1.27, 0.006]]).shape
        TensorShape([1, 2])
        >>> [round(float(v), 4) for v in layer(keras.ops.ones((1, 1)))[0]]
        [1.27, 0.01]

    Jacob et al. 2017, arXiv:1712.05877.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        axes: Mapping[str, tuple[int, ...]],
        num_bits: int = 8,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("name", layer.name if isinstance(layer, keras.layers.Layer) else None)
        super().__init__(layer, autocast=False, **kwargs)
        self.axes = {name: tuple(kept) for name, kept in axes.items()}
        self.num_bits = num_bits
        self.supports_masking = self.layer.supports_masking

    @property
    def kernel(self) -> Any:
        """The kernel of the wrapped layer, unrounded."""
        return self.layer.kernel

    @property
    def bias(self) -> Any:
        """The bias of the wrapped layer."""
        return self.layer.bias

    def rounded(self, name: str) -> Any:
        """The value of variable `name` that `call` computes with, in float32."""
        value = keras.ops.cast(getattr(self.layer, name).value, "float32")
        return fake_quantize_symmetric(value, self.axes[name], self.num_bits)

    def call(self, inputs: Any, **kwargs: Any) -> Any:
        mapping = [(getattr(self.layer, name), self.rounded(name)) for name in self.axes]
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            outputs = self.layer(inputs, **kwargs)
        # Activity regularisers report to the scope, where Keras would not look for them.
        for loss in scope.losses:
            self.add_loss(loss)
        return outputs

    def compute_output_spec(self, inputs: Any, **kwargs: Any) -> Any:
        return self.layer.compute_output_spec(inputs, **kwargs)

    def get_config(self) -> dict[str, Any]:
        axes = {name: list(kept) for name, kept in self.axes.items()}
        return {**super().get_config(), "axes": axes, "num_bits": self.num_bits}
