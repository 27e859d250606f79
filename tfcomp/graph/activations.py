"""The values of a layer before its activation."""

from __future__ import annotations

from typing import Any

import keras

from tfcomp.errors import UnsupportedModelError

_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
    keras.layers.Softmax,
)
_LINEAR = ("Dense", "EinsumDense", "Conv", "DepthwiseConv", "SeparableConv")


def pre_activation(layer: keras.Layer, inputs: Any, outputs: Any) -> Any:
    """The symbolic tensor that a layer's activation is applied to.

    For an activation layer it is its input. A dense layer or a convolution with an activation
    of its own is split: its kernel and bias are used without the activation, and stay the
    layer's own. Another layer's output is what an activation behind it is applied to.

    Args:
        layer: A layer of a functional or Sequential model.
        inputs: The symbolic tensor that it was called on.
        outputs: The symbolic tensor that the call gave.

    Returns:
        A symbolic tensor on the same inputs.

    Raises:
        UnsupportedModelError: If the activation is used inside the layer, as in an LSTM.

    Example:
        >>> import keras
        >>> dense = keras.layers.Dense(1, "relu", kernel_initializer="ones")
        >>> model = keras.Sequential([keras.Input((2,)), dense])
        >>> before = keras.Model(model.inputs, pre_activation(dense, dense.input, dense.output))
        >>> float(before(-keras.ops.ones((1, 2)))[0, 0])
        -2.0
    """
    if isinstance(layer, _ACTIVATIONS):
        return inputs
    activation = getattr(layer, "activation", None)
    if activation is None or activation is keras.activations.linear:
        return outputs
    if not type(layer).__name__.startswith(_LINEAR):
        raise UnsupportedModelError(
            f"Layer {layer.name!r} of class {type(layer).__name__} cannot be split before its "
            "activation: expected a dense layer, a convolution or an activation layer. Choose "
            "such a layer."
        )
    return _WithoutActivation(layer, name=f"{layer.name}_pre_activation")(inputs)


@keras.saving.register_keras_serializable(package="tfcomp")
class _WithoutActivation(keras.layers.Layer):
    """Calls a layer without the activation that it ends in."""

    def __init__(self, layer: keras.Layer, name: str | None = None) -> None:
        super().__init__(name=name, dtype=layer.dtype_policy)
        self.layer = layer
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The layer's linear part."""
        activation = self.layer.activation
        # For the length of one call: the layer is the caller's, and so are its weights.
        self.layer.activation = keras.activations.linear
        try:
            return self.layer(inputs)
        finally:
            self.layer.activation = activation
