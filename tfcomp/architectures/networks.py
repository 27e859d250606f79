"""Small image classifiers to start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfcomp.errors import TfcompError

layers = keras.layers


def residual_network(
    input_shape: Sequence[int],
    classes: int,
    widths: Sequence[int] = (32, 64, 128),
    blocks: int = 1,
    name: str = "residual_network",
) -> keras.Model:
    """A residual network of two-convolution blocks: y = ReLU(F(x) + shortcut(x)).

    Pixels 0…255 go in, logits come out; the stem and each stage but the first halve the resolution.

    Args:
        input_shape: (height, width, channels) of an image.
        classes: Number of logits.
        widths: Channels of each stage.
        blocks: Residual blocks in each stage.
        name: Name of the model.

    Returns:
        An untrained functional model.

    Raises:
        TfcompError: If a width or a count is not positive.

    Example:
        >>> residual_network((28, 28, 1), 10, widths=(8, 16)).output_shape
        (None, 10)

    Paper: He, Zhang, Ren, Sun 2015, "Deep Residual Learning for Image Recognition",
    arXiv:1512.03385.
    """
    _check(classes=classes, blocks=blocks, widths=widths)
    image = keras.Input(tuple(input_shape), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="rescale")(image)
    x = _conv_norm(x, widths[0], 3, 2, "stem")
    x = layers.ReLU(name="stem_relu")(x)
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 0 else 1
            x = _residual_block(x, width, stride, f"stage{stage + 1}_block{block + 1}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x), name=name)


def convolutional_network(
    input_shape: Sequence[int],
    classes: int,
    widths: Sequence[int] = (32, 64, 128),
    name: str = "convolutional_network",
) -> keras.Model:
    """A plain stack of 3×3 convolutions of stride 2, each with BatchNorm and ReLU.

    Pixels 0…255 go in, logits come out.

    Args:
        input_shape: (height, width, channels) of an image.
        classes: Number of logits.
        widths: Channels of each convolution.
        name: Name of the model.

    Returns:
        An untrained functional model.

    Raises:
        TfcompError: If a width is not positive.

    Example:
        >>> convolutional_network((28, 28, 1), 10, widths=(8, 16)).output_shape
        (None, 10)
    """
    _check(classes=classes, widths=widths)
    image = keras.Input(tuple(input_shape), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="rescale")(image)
    for index, width in enumerate(widths, start=1):
        x = _conv_norm(x, width, 3, 2, f"conv{index}")
        x = layers.ReLU(name=f"conv{index}_relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x), name=name)


def _conv_norm(x: Any, width: int, size: int, stride: int, name: str) -> Any:
    x = layers.Conv2D(width, size, stride, padding="same", use_bias=False, name=name)(x)
    # Short trainings: the usual momentum of 0.99 would not have forgotten its start.
    return layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)


def _residual_block(x: Any, width: int, stride: int, name: str) -> Any:
    shortcut = x
    if stride != 1 or x.shape[-1] != width:
        shortcut = _conv_norm(x, width, 1, stride, f"{name}_shortcut")
    y = _conv_norm(x, width, 3, stride, f"{name}_conv1")
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = _conv_norm(y, width, 3, 1, f"{name}_conv2")
    y = layers.Add(name=f"{name}_add")([y, shortcut])
    return layers.ReLU(name=f"{name}_relu2")(y)


def _check(**counts: int | Sequence[int]) -> None:
    for name, value in counts.items():
        values = value if isinstance(value, Sequence) else [value]
        if not values or not all(isinstance(v, int) and v > 0 for v in values):
            raise TfcompError(f"`{name}` must be positive whole numbers. Received: {value!r}.")
