"""The precision in which models compute."""

from __future__ import annotations

from collections.abc import Sequence

import keras


def policy_of(models: Sequence[keras.Model]) -> str:
    """The policy that a trainer of these models needs: mixed_float16 if any layer is in float16.

    A functional model's own policy may be another than that of its layers, after loading for
    one, and on it depends whether Keras scales the loss.

    Args:
        models: What is trained.

    Returns:
        `"mixed_float16"` or `"float32"`.

    Example:
        >>> layers = [keras.Input((4,)), keras.layers.Dense(2, dtype="mixed_float16")]
        >>> policy_of([keras.Sequential(layers)])
        'mixed_float16'
    """
    layers = [layer for model in models for layer in (model, *model.layers)]
    half = any(layer.compute_dtype == "float16" for layer in layers)
    return "mixed_float16" if half else "float32"
