"""A run's records and measurements, put together as one report."""

from __future__ import annotations

import datetime
from typing import Any

from tfcomp import conversion, profiling, quantization, runtime
from tfcomp.conversion import edgetpu
from tfcomp.datasets import Dataset
from tfcomp.recipes.directory import RunDirectory
from tfcomp.recipes.recipe import Convert, Recipe
from tfcomp.runtime.machine import hardware, versions


def assemble(
    recipe: Recipe, dataset: Dataset, directory: RunDirectory, records: list[dict[str, Any]]
) -> dict[str, Any]:
    """Measures the latency of every file, interleaved, and returns the whole report."""
    stages = []
    files = [directory.path / record["files"]["tflite"] for record in records]
    measured = runtime.latencies(files, threads=1)
    for stage, record, latency in zip(recipe.stages, records, measured, strict=True):
        row = {
            "name": stage.name,
            "kind": stage.kind,
            "examples": len(dataset.x_test),
            **{key: value for key, value in record.items() if key != "parity"},
            "latency_ms": {
                "median": latency.median_ms,
                "p90": latency.p90_ms,
                "threads": latency.threads,
                "runs": latency.runs,
            },
        }
        stages.append(row)
    return {
        "schema": 1,
        "title": recipe.title,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": recipe.seed,
        "recipe": recipe.to_dict(),
        "data": {
            "name": dataset.name,
            "train": len(dataset.x_train),
            "test": len(dataset.x_test),
            "licence": dataset.licence or None,
        },
        "versions": versions(),
        "hardware": hardware(),
        "stages": stages,
        **_final(recipe, directory, records),
    }


def _final(
    recipe: Recipe, directory: RunDirectory, records: list[dict[str, Any]]
) -> dict[str, Any]:
    """What is told of the last model and of the last file alone."""
    last_model = [r["files"]["keras"] for r in records if "keras" in r["files"]][-1]
    model = quantization.strip_quantization(profiling.load_keras(directory.path / last_model))
    audit = conversion.audit(directory.path / records[-1]["files"]["tflite"])
    file = records[-1]["files"]["tflite"]
    # Paths below the run's folder: the report must not depend on where the folder stands.
    target = {**edgetpu.analyse(audit).to_dict(), "path": file}
    converted = isinstance(recipe.stages[-1], Convert)
    return {
        "layers": [
            {**layer.to_dict(), "bytes": layer.nbytes} for layer in profiling.profile(model).layers
        ],
        "file": {
            **audit.to_dict(),
            "path": file,
            "dtype": getattr(recipe.stages[-1], "dtype", None),
        },
        "parity": records[-1].get("parity"),
        "edgetpu": target if converted else None,
        "compatibility": [str(audit.compatibility)],
    }
