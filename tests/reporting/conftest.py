"""A report like one that a real run writes: figures are plausible, not measured."""

from __future__ import annotations

import math
from typing import Any

import pytest


def _history(epochs: int, start: float, end: float, gap: float) -> dict[str, list[float]]:
    steps = [1 - math.exp(-2.4 * (i + 1) / epochs) for i in range(epochs)]
    train = [start + (end - start) * s / steps[-1] for s in steps]
    return {
        "accuracy": [round(a, 4) for a in train],
        "val_accuracy": [round(a - gap * s + 0.004 * math.sin(3 * i), 4)
                         for i, (a, s) in enumerate(zip(train, steps, strict=True))],
        "loss": [round(1.6 * (1 - a), 4) for a in train],
    }  # fmt: skip


def _stage(name: str, kind: str, what: str, accuracy: float, **more: Any) -> dict[str, Any]:
    number = more.pop("number")
    files = {"keras": f"{number}-{name}.keras", "tflite": f"{number}-{name}.tflite"}
    stage = {"name": name, "kind": kind, "what": what, "files": files, "accuracy": accuracy}
    return {**stage, "examples": 1000, "skipped": {}, "notes": [], **more}


def _latency(median: float, p90: float) -> dict[str, Any]:
    return {"median": median, "p90": p90, "threads": 1, "runs": 200}


def _stages() -> list[dict[str, Any]]:
    return [
        _stage("teacher", "train", "Trained a residual network on the labels.", 0.913, number=1,
               parameters=1_122_378, nonzero_parameters=1_122_378, macs=78_643_712,
               bytes=4_493_116, gzip_bytes=4_162_020, latency_ms=_latency(4.8132, 5.2017),
               train_seconds=121.4, epochs=6, history=_history(6, 0.74, 0.946, 0.033)),
        _stage("student", "distill", "Distilled from the teacher at temperature 4.", 0.905,
               number=2, parameters=287_914, nonzero_parameters=287_914, macs=19_874_560,
               bytes=1_155_612, gzip_bytes=1_068_207, latency_ms=_latency(1.4421, 1.6102),
               train_seconds=64.9, epochs=8, history=_history(8, 0.66, 0.931, 0.026)),
        _stage("shrunk", "shrink", "Removed half of the channels, then fine-tuned.", 0.897,
               number=3, parameters=118_206, nonzero_parameters=118_206, macs=6_120_448,
               bytes=475_904, gzip_bytes=440_870, latency_ms=_latency(0.5311, 0.6240),
               train_seconds=22.7, epochs=4, history=_history(4, 0.83, 0.915, 0.018),
               skipped={"logits": "its channels are the model's output",
                        "stem_add": "joins a branch that reads the input directly"},
               notes=["Asked for 50%, got 48.4% after rounding to 8 channels."]),
        _stage("qat", "quantize", "Trained on with int8 arithmetic imitated.", 0.899, number=4,
               parameters=118_206, nonzero_parameters=117_988, macs=6_120_448,
               bytes=476_320, gzip_bytes=441_515, latency_ms=None,
               train_seconds=31.2, epochs=4, history=_history(4, 0.87, 0.918, 0.019)),
        _stage("int8", "convert", "Converted to an int8 file and checked it.", 0.898, number=5,
               parameters=118_206, nonzero_parameters=116_204, macs=6_120_448,
               bytes=139_472, gzip_bytes=112_903, latency_ms=_latency(0.4127, 0.4588),
               train_seconds=None, epochs=None, history=None),
    ]  # fmt: skip


def _layers() -> list[dict[str, Any]]:
    rows: list[tuple[str, str, list[int | None], int, int]] = [
        ("stem", "Conv2D", [None, 28, 28, 16], 160, 112_896),
        ("stem_bn", "BatchNormalization", [None, 28, 28, 16], 64, 0),
        ("stem_relu", "ReLU", [None, 28, 28, 16], 0, 0),
    ]
    for block, (width, side) in enumerate([(24, 28), (48, 14), (72, 7)], start=1):
        before = [16, 24, 48][block - 1]
        for part, source in (("a", before), ("b", width)):
            count = 9 * source * width
            rows += [
                (f"block{block}_conv_{part}", "Conv2D", [None, side, side, width], count,
                 count * side * side),
                (f"block{block}_bn_{part}", "BatchNormalization", [None, side, side, width],
                 4 * width, 0),
            ]  # fmt: skip
        rows.append((f"block{block}_add", "Add", [None, side, side, width], 0, 0))
    rows.append(("pool", "GlobalAveragePooling2D", [None, 72], 0, 0))
    rows.append(("logits", "Dense", [None, 10], 730, 720))
    return [
        {"name": name, "kind": kind, "output_shape": shape, "parameters": parameters,
         "nonzero_parameters": parameters - parameters // 60, "macs": macs,
         "bytes": 4 * parameters}
        for name, kind, shape, parameters, macs in rows
    ]  # fmt: skip


def _ops() -> list[dict[str, Any]]:
    names = ["CONV_2D"] * 4 + ["ADD"] + ["CONV_2D"] * 3 + ["ADD", "CONV_2D", "CONV_2D", "ADD"]
    ops: list[dict[str, Any]] = [
        {"index": i, "op": name, "mapped": True, "reason": None, "certainty": "proven",
         "suggestion": None} for i, name in enumerate(names)
    ]  # fmt: skip
    ops.append({"index": 12, "op": "MEAN", "mapped": True, "reason": None,
                "certainty": "documented", "suggestion": None})  # fmt: skip
    ops.append({"index": 13, "op": "HARD_SWISH", "mapped": False, "certainty": "proven",
                "reason": "Operation not supported",
                "suggestion": "Use ReLU6 instead."})  # fmt: skip
    return ops


def example_report() -> dict[str, Any]:
    """A whole report; a new one at each call, so that a test may change it."""
    return {
        "schema": 1,
        "title": "Fashion-MNIST, teacher to int8",
        "created": "2025-11-03T14:20:31+00:00",
        "seed": 7,
        "recipe": {
            "name": "demo", "seed": 7, "data": {"name": "fashion_mnist_sample", "batch_size": 64},
            "stages": [
                {"train": {"architecture": "resnet", "width": 32, "epochs": 6}},
                {"distill": {"temperature": 4.0, "student_loss_weight": 0.1, "epochs": 8}},
                {"shrink": {"ratio": 0.5, "criterion": "l1", "round_to": 8, "epochs": 4}},
                {"quantize": {"scheme": "tflite8", "epochs": 4}},
                {"convert": {"dtype": "int8", "target": "tflite"}},
            ],
        },
        "data": {"name": "Fashion-MNIST sample", "train": 6000, "test": 1000, "licence": "MIT"},
        "versions": {"tfcomp": "0.1.0", "keras": "3.15.1", "tensorflow": "2.21.0",
                     "ai-edge-litert": "2.3.0", "numpy": "2.4.0", "python": "3.11.9"},
        "hardware": {"cpu": "Example CPU @ 2.50 GHz", "cores": 2, "memory_bytes": 8_331_890_688,
                     "system": "Linux 6.1 x86_64"},
        "stages": _stages(),
        "layers": _layers(),
        "file": {
            "path": "5-int8.tflite", "dtype": "int8", "nbytes": 139_472, "gzip_bytes": 112_903,
            "inputs": [{"name": "image", "shape": [1, 28, 28, 1], "dtype": "float32"}],
            "outputs": [{"name": "logits", "shape": [1, 10], "dtype": "float32"}],
            "op_counts": {"CONV_2D": 9, "ADD": 3, "MEAN": 1, "FULLY_CONNECTED": 1,
                          "QUANTIZE": 1, "DEQUANTIZE": 1},
            "float_ops": [],
        },
        "parity": {"argmax_agreement": 0.998, "max_steps": 2, "examples": 1000},
        "edgetpu": {"mapped": 13, "total": 14, "predicted": True, "all_mapped_baseline": 14,
                    "ops": _ops()},
        "compatibility": ["LiteRT 1.4 and later; tflite-runtime 2.14 (NumPy below 2)."],
    }  # fmt: skip


@pytest.fixture
def report() -> dict[str, Any]:
    return example_report()
