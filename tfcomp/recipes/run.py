"""From a recipe to a folder of models, files and a report, stage by stage."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfcomp import architectures, conversion, datasets, profiling, pruning, quantization, reporting
from tfcomp.callbacks import PruneWeights
from tfcomp.datasets import Dataset
from tfcomp.errors import TfcompError
from tfcomp.files import replacing, write_json
from tfcomp.recipes import training
from tfcomp.recipes.directory import REPORT_FILE, RunDirectory, read_report
from tfcomp.recipes.progress import Lines
from tfcomp.recipes.recipe import (
    Architecture,
    Convert,
    Distill,
    Prune,
    Quantize,
    Recipe,
    Shrink,
    Stage,
    Train,
)
from tfcomp.recipes.report import assemble

CALIBRATION_EXAMPLES = 500

Report = dict[str, Any]
Tell = Callable[[float, str], None]


def run(
    recipe: Recipe, out: str | os.PathLike[str], *, resume: bool = False, progress: bool = False
) -> Report:
    """Does what the recipe says and writes everything into the folder `out`.

    Each stage starts from files, never from what an earlier stage left in memory, and sets the
    seed anew: a run that was killed and resumed makes the same models as one that was not.

    Args:
        recipe: From `load_recipe` or `parse`.
        out: Folder for models, files, `report.json` and `report.html`.
        resume: Go on with a run of the same recipe after its last finished stage.
        progress: Print a line for every stage.

    Returns:
        The report, as it stands in `report.json`.

    Raises:
        TfcompError: If the recipe, the data, a model or the folder does not allow it.
        ConversionError: If a file is not what the recipe asks for.
    """
    dataset = datasets.load(recipe.data.name)
    directory = RunDirectory(out, recipe, dataset.fingerprint(), resume)
    lines = Lines(len(recipe.stages), sys.stdout if progress else None)
    records = []
    for index, stage in enumerate(recipe.stages):
        record = directory.record(index)
        if record is None:
            with lines.stage(index, stage.name, stage.kind) as tell:
                # Names that Keras makes up must not depend on how many stages ran before.
                keras.utils.clear_session()
                keras.utils.set_random_seed(recipe.seed + index)
                record = _Step(recipe, dataset, directory, index, tell).run()
                directory.finish(index, record)
                lines.done(record)
        else:
            lines.kept(index, stage.name, record)
        records.append(record)
    with lines.stage(len(recipe.stages), "report", "latency of every file") as tell:
        write_json(directory.path / REPORT_FILE, assemble(recipe, dataset, directory, records))
        report = read_report(directory.path)
        reporting.write_html(report, directory.path / "report.html")
    return report


class _Step:
    """One stage: reads its models from files, does its work, writes files and a record."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, directory: RunDirectory, index: int, tell: Tell
    ) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.directory = directory
        self.index = index
        self.stage: Stage = recipe.stages[index]
        self.seed = recipe.seed + index
        self.tell = tell

    def run(self) -> dict[str, Any]:
        """Does the stage; returns its record."""
        stage = self.stage
        if isinstance(stage, Convert):
            return self._convert(stage)
        model = self._model(stage.model)
        record: dict[str, Any] = {"skipped": {}, "notes": []}
        if isinstance(stage, Shrink):
            model, details = self._shrink(model, stage)
        elif isinstance(stage, Quantize):
            model, details = self._quantize(model, stage)
        elif isinstance(stage, Prune):
            details = self._prune(model, stage)
        else:
            details = self._train(model, stage)
        return {**record, **details, **self._keep(model)}

    def _train(self, model: keras.Model, stage: Train | Distill) -> dict[str, Any]:
        teacher = isinstance(stage, Distill) and stage.teacher
        what = f"distilled from {teacher}" if teacher else "trained on the labels"
        return {"what": f"{what.capitalize()}.", **self._fit(model, stage)}

    def _shrink(self, model: keras.Model, stage: Shrink) -> tuple[keras.Model, dict[str, Any]]:
        small, report = pruning.shrink(
            model,
            ratio=stage.ratio,
            criterion=stage.criterion,
            scope=stage.scope,
            round_to=stage.round_to,
        )
        what = f"{report.removed} of {report.prunable} channels removed by {stage.criterion} norm."
        return small, {"what": what, "skipped": dict(report.skipped)}

    def _prune(self, model: keras.Model, stage: Prune) -> dict[str, Any]:
        steps = -(-len(self.dataset.x_train) // self.recipe.data.batch_size) * stage.epochs
        schedule = pruning.PolynomialDecay(
            0.0, stage.sparsity, begin_step=0, end_step=max(1, steps * 3 // 4)
        )
        pruned = PruneWeights.from_zeros if _holds_zeros(model) else PruneWeights
        callback = pruned(schedule)
        details = self._fit(model, stage, callback)
        report = callback.report
        if report is None:
            raise TfcompError(f"stage {stage.name!r}: the training ended before it pruned.")
        return {
            "what": f"Weights removed up to a sparsity of {report.sparsity:.3f}.",
            "skipped": dict(report.skipped),
            **details,
        }

    def _quantize(self, model: keras.Model, stage: Quantize) -> tuple[keras.Model, dict[str, Any]]:
        aware = quantization.quantize_aware(model)
        details = self._fit(aware, stage)
        return aware, {
            "what": "Trained with the rounding of int8 in place.",
            "skipped": quantization.quantization_report(model).skipped,
            **details,
        }

    def _fit(
        self, model: keras.Model, stage: Any, masks: PruneWeights | None = None
    ) -> dict[str, Any]:
        teacher = getattr(stage, "teacher", None)
        notes = []
        if masks is None and _holds_zeros(model):
            # What an earlier stage pruned stays pruned: exact zeros are the mask.
            masks = PruneWeights.from_zeros()
            notes.append("The zeros that earlier pruning left were kept.")
        trained = training.fit(
            model,
            self.dataset,
            self.recipe.data,
            stage,
            self.seed,
            teacher=self._model(teacher) if teacher else None,
            callbacks=(masks,) if masks else (),
            report=self.tell,
        )
        return {
            "notes": notes,
            "train_seconds": trained.seconds,
            "epochs": stage.epochs,
            "history": trained.history,
        }

    def _keep(self, model: keras.Model) -> dict[str, Any]:
        """Saves the model and its float file, and measures what does not take a clock."""
        keras_file = self.directory.file(self.index, ".keras")
        tflite_file = self.directory.file(self.index, ".tflite")
        self.tell(1.0, "saving")
        with replacing(keras_file) as temporary:
            model.save(temporary)
        artifact = conversion.convert(model, tflite_file, dtype="float32")
        predictions = model.predict(self.dataset.x_test, batch_size=256, verbose=0)
        return {
            "files": {"keras": keras_file.name, "tflite": tflite_file.name},
            "accuracy": training.accuracy(predictions, self.dataset),
            **_size(model),
            "bytes": artifact.nbytes,
            "gzip_bytes": artifact.gzip_bytes,
        }

    def _convert(self, stage: Convert) -> dict[str, Any]:
        model = self._model(stage.model)
        file = self.directory.file(self.index, ".tflite")
        self.tell(0.2, f"converting to {stage.dtype}")
        artifact = conversion.convert(
            model,
            file,
            dtype=stage.dtype,
            target=stage.target,
            calibration=self.dataset.x_train[:CALIBRATION_EXAMPLES]
            if self._ranges(model)
            else None,
        )
        self.tell(0.7, "comparing with the Keras model")
        parity = artifact.compare(model, self.dataset.x_test)
        return {
            "what": f"Converted to {stage.dtype} and read back.",
            "files": {"tflite": file.name},
            "accuracy": training.accuracy(artifact.run(self.dataset.x_test), self.dataset),
            **_size(model),
            "bytes": artifact.nbytes,
            "gzip_bytes": artifact.gzip_bytes,
            "parity": parity.to_dict(),
            "skipped": {},
            "notes": _compiler_notes(artifact),
        }

    def _ranges(self, model: keras.Model) -> bool:
        """Whether the file needs ranges that the model has not learnt."""
        dtype = getattr(self.stage, "dtype", None)
        aware = quantization.is_quantize_aware(model)
        return dtype == "int16x8" or (dtype == "int8" and not aware)

    def _model(self, source: Architecture | str | None) -> keras.Model:
        if isinstance(source, Architecture):
            return self._build(source)
        if source is None:
            raise TfcompError(f"stage {self.stage.name!r}: no model to start from.")
        path = pathlib.Path(source)
        file = path if path.suffix == ".keras" else self.directory.keras_file(source)
        model = profiling.load_keras(file)
        self._check_fits(model, file)
        return model

    def _build(self, architecture: Architecture) -> keras.Model:
        shape, classes = self.dataset.input_shape, self.dataset.classes
        if architecture.network == "residual":
            return architectures.residual_network(
                shape, classes, architecture.widths, architecture.blocks
            )
        return architectures.convolutional_network(shape, classes, architecture.widths)

    def _check_fits(self, model: keras.Model, file: pathlib.Path) -> None:
        shape, classes = self.dataset.input_shape, self.dataset.classes
        expected = ((None, *shape), (None, classes))
        received = (model.input_shape, model.output_shape)
        if expected[0][1:] != received[0][1:] or received[1][-1] < classes:
            raise TfcompError(
                f"The model {file.name} does not fit the data {self.dataset.name!r}: expected "
                f"inputs of shape {expected[0]} and outputs of shape {expected[1]}. "
                f"Received: {received[0]} and {received[1]}."
            )


def _compiler_notes(artifact: conversion.Artifact) -> list[str]:
    """What the real Edge TPU compiler said, where it was called."""
    compiled = artifact.edgetpu
    if not isinstance(compiled, conversion.Compilation):
        return []
    found = compiled.to_dict()
    differing = "; ".join(compiled.disagreements) or "as predicted"
    return [f"edgetpu_compiler mapped {found['mapped']} of {found['total']} ops: {differing}."]


def _holds_zeros(model: keras.Model) -> bool:
    kernels, _ = pruning.find_kernels(model, depthwise=True)
    return any(np.any(keras.ops.convert_to_numpy(k.variable) == 0) for k in kernels)


def _size(model: keras.Model) -> dict[str, Any]:
    profile = profiling.profile(quantization.strip_quantization(model))
    return {
        "parameters": profile.parameters,
        "nonzero_parameters": profile.nonzero_parameters,
        "macs": profile.macs,
    }
