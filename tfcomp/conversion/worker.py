"""Runs TensorFlow's converter in a process of its own, since it can crash.

Started as a script with a folder as its argument, it imports nothing of this package: a second
import of Keras would cost seconds. The folder holds `request.json`, the SavedModel `model` and,
where the ranges are to be measured, `calibration.npz`; the file goes to `model.tflite`.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

_INTEGER_16X8 = "EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8"


def main(folder: str) -> None:
    """Converts what `folder` holds."""
    path = pathlib.Path(folder)
    request = json.loads((path / "request.json").read_text(encoding="utf-8"))
    converter = tf.lite.TFLiteConverter.from_saved_model(str(path / "model"))
    _configure(converter, request)
    calibration = path / "calibration.npz"
    if calibration.exists():
        arrays = dict(np.load(calibration))
        converter.representative_dataset = lambda: _samples(arrays)
    (path / "model.tflite").write_bytes(converter.convert())


def _configure(converter: Any, request: dict[str, Any]) -> None:
    builtins = tf.lite.OpsSet.TFLITE_BUILTINS
    converter.target_spec.supported_ops = [builtins]
    dtype = request["dtype"]
    if dtype != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if dtype == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if dtype == "int16x8":
        converter.target_spec.supported_ops = [getattr(tf.lite.OpsSet, _INTEGER_16X8), builtins]
    if dtype in ("int8", "int16x8"):
        converter.inference_input_type = tf.dtypes.as_dtype(request["io_dtype"])
        converter.inference_output_type = tf.dtypes.as_dtype(request["io_dtype"])
    if request["per_tensor_dense"]:
        # The one switch for it that TensorFlow has (2.17 to 2.21); without it the Edge TPU
        # compiler is given a scale per unit, which the chip cannot use.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True


def _samples(arrays: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    count = len(next(iter(arrays.values())))
    for index in range(count):
        yield {name: values[index : index + 1] for name, values in arrays.items()}


if __name__ == "__main__":
    main(sys.argv[1])
