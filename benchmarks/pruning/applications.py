"""`shrink` on all models of keras.applications: 30 % and 50 % of the channels cut at random.

With every weight, statistic and LayerScale random and suited to the data, in float64, the smaller
model's logits are compared with those of the masked one (see tests/pruning/oracle.py), and with a
cut of one layer at wrong places, which has to be told. Then the same in float32, through LiteRT.

One process and one JSON for each model and ratio, the small models first; what is there is not run
again, unless it failed: then the JSON holds the reason. Images are of 32 pixels, or the least that
a family allows.

    python -m benchmarks.pruning.applications [--only=ResNet]
"""

from __future__ import annotations

import collections
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import keras
import numpy as np
from absl import app, flags

from benchmarks import results
from tests.pruning import oracle
from tfcomp.conversion import convert
from tfcomp.profiling import profile
from tfcomp.pruning import Random, shrink

_ONLY = flags.DEFINE_string("only", "", "models whose name has this in it")
_ONE = flags.DEFINE_list("one", None, "MODEL,RATIO: run this one, here")

NAME = "pruning_applications"
RATIOS = (0.3, 0.5)
SEED = 0
SIZES = {"Inception": 75, "Xception": 71}
MODELS = [
    "MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "EfficientNetB0",
    "EfficientNetV2B0", "NASNetMobile", "DenseNet121", "EfficientNetB1", "EfficientNetV2B1",
    "EfficientNetB2", "EfficientNetV2B2", "DenseNet169", "EfficientNetB3", "EfficientNetV2B3",
    "DenseNet201", "Xception", "InceptionV3", "ResNet50", "ResNet50V2", "EfficientNetB4", "VGG16",
    "VGG19", "EfficientNetV2S", "ConvNeXtTiny", "EfficientNetB5", "ResNet101", "ResNet101V2",
    "EfficientNetB6", "ConvNeXtSmall", "EfficientNetV2M", "InceptionResNetV2", "ResNet152",
    "ResNet152V2", "EfficientNetB7", "ConvNeXtBase", "NASNetLarge", "EfficientNetV2L",
    "ConvNeXtLarge", "ConvNeXtXLarge",
]  # fmt: skip


def run_name(model: str, ratio: float) -> str:
    """What the result of a run is called."""
    return f"{NAME}/{model}-{100 * ratio:.0f}"


def application(name: str) -> keras.Model:
    """A model of keras.applications for 10 classes, logits without a softmax."""
    size = next((size for part, size in SIZES.items() if part in name), 32)
    make = getattr(keras.applications, name)
    model: keras.Model = make(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    return model


def perform(name: str, ratio: float) -> dict[str, Any]:
    """Cuts one model, compares, converts."""
    start = time.process_time()
    with oracle.double_precision():
        model = oracle.settle_for(application(name), ratio, SEED)
        small, report = shrink(model, ratio, Random(SEED))
        found = oracle.compare(model, small, oracle.pictures(model))
        layer = oracle.victims(model, small)[0]
        caught = oracle.is_caught(model, ratio, SEED, layer, "shifted")
    costs = [profile(one) for one in (model, small)]
    reasons = collections.Counter(report.skipped.values())
    del small
    keras.utils.clear_session()
    return {
        "difference": found.difference,
        "alive": found.alive,
        "fault": {"layer": layer, "caught": caught},
        "removed": report.got,
        "parameters": [cost.parameters for cost in costs],
        "macs": [cost.macs for cost in costs],
        "left_alone": dict(reasons),
        "litert_difference": litert_difference(name, ratio, model),
        "core_seconds": time.process_time() - start,
    }


def litert_difference(name: str, ratio: float, model: keras.Model) -> float:
    """The file of the smaller model against that in float32: most over the largest logit."""
    single = oracle.take_weights(application(name), model)
    small, _ = shrink(single, ratio, Random(SEED))
    images = oracle.pictures(small)[0]
    (expected,) = oracle.outputs(small, [images])
    with tempfile.TemporaryDirectory() as folder:
        artifact = convert(small, pathlib.Path(folder) / "small.tflite")
        received = np.concatenate([artifact.run(image[None]) for image in images])
    return float(np.abs(received - expected).max() / np.abs(expected).max())


def main(_: list[str]) -> None:
    if _ONE.value is not None:
        name, ratio = _ONE.value[0], float(_ONE.value[1])
        found = perform(name, ratio)
        results.save(run_name(name, ratio), seed=SEED, budget=budget(ratio), results=found)
        print(name, ratio, found, flush=True)
        return
    for name in MODELS:
        for ratio in RATIOS:
            if _ONLY.value in name and "difference" not in (stored(name, ratio) or {}):
                run(name, ratio)


def budget(ratio: float) -> dict[str, Any]:
    """What a result depends on."""
    return {"ratio": ratio, "scale": oracle.SCALE}


def stored(name: str, ratio: float) -> dict[str, Any] | None:
    """What a run with the weights of today has found, or {"failed": reason}."""
    saved = results.load(run_name(name, ratio))
    if saved is None or saved["budget"] != budget(ratio):
        return None
    found: dict[str, Any] = saved["results"]
    return found


def run(name: str, ratio: float) -> None:
    """Runs one in a process of its own, since a large one can run out of memory."""
    command = [sys.executable, "-m", "benchmarks.pruning.applications", f"--one={name},{ratio}"]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        failed = {"failed": f"exit code {done.returncode}: {said[-1] if said else 'no message'}"}
        results.save(run_name(name, ratio), seed=SEED, budget=budget(ratio), results=failed)
        print(name, ratio, failed, flush=True)


if __name__ == "__main__":
    app.run(main)
