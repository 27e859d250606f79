"""A recipe file: the data and the stages that a model goes through."""

from __future__ import annotations

import dataclasses
import difflib
import os
import pathlib
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import yaml

from tfcomp.errors import TfcompError


def _one_of(default: str, *others: str) -> Any:
    """A field that takes one of these words, the first by default."""
    return dataclasses.field(default=default, metadata={"choices": (default, *others)})


@dataclasses.dataclass(frozen=True)
class Data:
    """What to train and test on.

    Attributes:
        name: A name that `tfcomp.datasets.load` knows, or the path of an `.npz`.
        batch_size: Examples per training step.
        flip: Whether training images are mirrored left to right at random.
        shift: Training images are moved by up to so many pixels at random.
        erase: Share of the training images in which a random rectangle is made black (random
            erasing, Zhong et al. 2017, arXiv:1708.04896).
    """

    name: str
    batch_size: int = 128
    flip: bool = False
    shift: int = 0
    erase: float = 0.0


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model to be made from nothing.

    Attributes:
        network: `residual` or `convolutional`.
        widths: Channels of each stage.
        blocks: Blocks in each stage of a residual network.
    """

    network: str = _one_of("residual", "convolutional")
    widths: tuple[int, ...] = dataclasses.field(kw_only=True)
    blocks: int = 1


@dataclasses.dataclass(frozen=True)
class Train:
    """Trains a model on the labels.

    Attributes:
        name: Name of the stage and of its files.
        model: An architecture, the name of an earlier stage, or the path of a `.keras`;
            the stage before by default.
        epochs: Passes over the training data.
        learning_rate: Where the cosine decay to zero starts (Adam).
    """

    kind: ClassVar[str] = "train"
    name: str
    model: Architecture | str | None = None
    epochs: int = 1
    learning_rate: float = 1e-3


@dataclasses.dataclass(frozen=True)
class Distill:
    """Trains a model on the labels and on a teacher's outputs (`KnowledgeDistillation`).

    Attributes:
        teacher: The name of an earlier stage or the path of a `.keras`.
        temperature: Softens both models' outputs.
        student_loss_weight: Share of the labels in the loss.
    """

    kind: ClassVar[str] = "distill"
    name: str
    teacher: str
    model: Architecture | str | None = None
    epochs: int = 1
    learning_rate: float = 1e-3
    temperature: float = 4.0
    student_loss_weight: float = 0.1


@dataclasses.dataclass(frozen=True)
class Shrink:
    """Removes channels physically (`tfcomp.pruning.shrink`)."""

    kind: ClassVar[str] = "shrink"
    name: str
    model: str | None = None
    ratio: float = 0.5
    criterion: str = _one_of("l1", "l2", "random")
    scope: str = _one_of("local", "global")
    round_to: int | None = None


@dataclasses.dataclass(frozen=True)
class Prune:
    """Trains with weights removed gradually (`tfcomp.callbacks.PruneWeights`)."""

    kind: ClassVar[str] = "prune"
    name: str
    sparsity: float
    model: str | None = None
    teacher: str | None = None
    epochs: int = 1
    learning_rate: float = 1e-3
    temperature: float = 4.0
    student_loss_weight: float = 0.1


@dataclasses.dataclass(frozen=True)
class Quantize:
    """Makes the model quantisation-aware and trains it, with a teacher if one is named."""

    kind: ClassVar[str] = "quantize"
    name: str
    model: str | None = None
    teacher: str | None = None
    epochs: int = 1
    learning_rate: float = 1e-4
    temperature: float = 4.0
    student_loss_weight: float = 0.1


@dataclasses.dataclass(frozen=True)
class Convert:
    """Converts to a `.tflite`, checks it, compares it with the Keras model.

    Attributes:
        dtype: As `tfcomp.convert` takes it; calibration data, where needed, are training
            inputs.
        target: As `tfcomp.convert` takes it.
    """

    kind: ClassVar[str] = "convert"
    name: str
    model: str | None = None
    dtype: str = _one_of("int8", "int16x8", "dynamic", "float16", "float32")
    target: str = _one_of("tflite", "edgetpu")


Stage = Train | Distill | Shrink | Prune | Quantize | Convert
STAGES: dict[str, type[Stage]] = {
    stage.kind: stage for stage in (Train, Distill, Shrink, Prune, Quantize, Convert)
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Data, stages and a seed; the same recipe gives the same models on the same machine."""

    title: str
    data: Data
    stages: tuple[Stage, ...]
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, which `parse` reads back."""
        stages = [{s.kind: _plain(dataclasses.asdict(s))} for s in self.stages]
        return {
            "title": self.title,
            "seed": self.seed,
            "data": dataclasses.asdict(self.data),
            "stages": stages,
        }


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Reads a recipe file; paths in it are relative to the file.

    Args:
        path: A YAML file.

    Returns:
        The recipe, checked.

    Raises:
        TfcompError: If the file is missing or not a recipe; says where and what to do.
    """
    file = pathlib.Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise TfcompError(f"Cannot read recipe {file}: {reason}.") from error
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "the file"
        problem = getattr(error, "problem", None) or "not YAML"
        raise TfcompError(f"Recipe {file} is not valid YAML: {where}: {problem}.") from error
    return parse(value, file.parent)


def parse(value: Any, folder: pathlib.Path = pathlib.Path()) -> Recipe:
    """Makes a recipe from plain values.

    Args:
        value: Nested dicts and lists, as YAML gives them.
        folder: What relative paths are relative to.

    Returns:
        The recipe, checked: unknown keys, wrong types and missing files are refused.

    Raises:
        TfcompError: At the first thing that is wrong, with the nearest valid key.

    Example:
        >>> parse({"data": "fashion_mnist_sample", "stages": [
        ...     {"train": {"name": "t", "model": {"network": "residual", "widths": [8]}}}
        ... ]}).stages[0].epochs
        1
    """
    if not isinstance(value, dict):
        raise TfcompError(
            f"A recipe is a mapping with `data` and `stages`. Received: {type(value).__name__}."
        )
    _check_keys(value, ("title", "seed", "data", "stages"), "the recipe", ("data", "stages"))
    data = value["data"]
    data = _make(Data, {"name": data} if isinstance(data, str) else data, "data")
    if data.name.endswith(".npz"):
        data = dataclasses.replace(data, name=_existing(data.name, folder, "data"))
    stages = _parse_stages(value["stages"], folder)
    seed = _typed(value.get("seed", 0), int, "seed")
    return Recipe(_typed(value.get("title", "Recipe"), str, "title"), data, stages, seed)


def _parse_stages(value: Any, folder: pathlib.Path) -> tuple[Stage, ...]:
    if not isinstance(value, list) or not value:
        raise TfcompError(f"`stages` must be a list of one stage or more. Received: {value!r}.")
    stages: list[Stage] = []
    for position, item in enumerate(value, start=1):
        where = f"stage {position}"
        if not isinstance(item, dict) or len(item) != 1:
            raise TfcompError(
                f"{where}: expected one kind with its settings, such as `- train: {{name: a}}`. "
                f"Received: {item!r}."
            )
        [(kind, settings)] = item.items()
        if kind not in STAGES:
            raise TfcompError(f"{where}: unknown kind {kind!r}.{_nearest(kind, STAGES)}")
        stage: Stage = _make(STAGES[kind], settings, f"{where} ({kind})")
        _check_name(stage.name, [s.name for s in stages], where)
        stages.append(_resolve(stage, stages, folder, f"{where} ({kind})"))
    return tuple(stages)


def _check_name(name: str, earlier: Sequence[str], where: str) -> None:
    if not name or not all(c.isalnum() or c in "-_" for c in name):
        raise TfcompError(
            f"{where}: `name` becomes a file name and may hold letters, digits, - and _ only. "
            f"Received: {name!r}."
        )
    if name in earlier:
        raise TfcompError(f"{where}: the name {name!r} is taken by an earlier stage.")


def _resolve(stage: Stage, earlier: Sequence[Stage], folder: pathlib.Path, where: str) -> Stage:
    """Fills in the model of the stage before and makes paths absolute."""
    names = [s.name for s in earlier if not isinstance(s, Convert)]
    changes: dict[str, Any] = {}
    if stage.model is None:
        if not names:
            raise TfcompError(f"{where}: `model` is needed, as there is no stage before.")
        changes["model"] = names[-1]
    for key in ("model", "teacher"):
        source = getattr(stage, key, None)
        if not isinstance(source, str) or source in names:
            continue
        if not source.endswith(".keras"):
            raise TfcompError(
                f"{where}: `{key}` must be an earlier stage ({', '.join(names) or 'none yet'}) "
                f"or a .keras file. Received: {source!r}.{_nearest(source, names)}"
            )
        changes[key] = _existing(source, folder, f"{where}: `{key}`")
    return dataclasses.replace(stage, **changes)


def _existing(path: str, folder: pathlib.Path, where: str) -> str:
    file = (folder / path).absolute()
    if not file.is_file():
        raise TfcompError(f"{where}: the file {file} does not exist.")
    return str(file)


def _make(cls: Any, settings: Any, where: str) -> Any:
    """An instance of the dataclass `cls` from a mapping, keys and types checked."""
    if not isinstance(settings, dict):
        raise TfcompError(f"{where}: expected a mapping of settings. Received: {settings!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    needed = [f.name for f in fields.values() if f.default is dataclasses.MISSING]
    _check_keys(settings, tuple(fields), where, needed)
    types = typing.get_type_hints(cls)
    values = {key: _typed(v, types[key], f"{where}: `{key}`") for key, v in settings.items()}
    for key, value in values.items():
        choices = fields[key].metadata.get("choices")
        if choices and value not in choices:
            raise TfcompError(
                f"{where}: `{key}` must be one of {', '.join(choices)}. Received: {value!r}."
            )
    return cls(**values)


def _typed(value: Any, expected: Any, where: str) -> Any:
    options = [o for o in typing.get_args(expected) if not isinstance(o, type(...))]
    if Architecture in options and isinstance(value, dict):
        return _make(Architecture, value, where)
    if typing.get_origin(expected) is tuple:
        if isinstance(value, list) and value and all(type(v) is int and v > 0 for v in value):
            return tuple(value)
        raise TfcompError(f"{where} must be a list of positive whole numbers. Received: {value!r}.")
    plain = tuple(o for o in options if o is not Architecture) or (expected,)
    if float in plain and type(value) is int:
        value = float(value)
    if type(value) not in plain:
        names = " or ".join("nothing" if t is type(None) else t.__name__ for t in plain)
        raise TfcompError(f"{where} must be {names}. Received: {value!r}.")
    return _in_range(value, where)


def _in_range(value: Any, where: str) -> Any:
    key = where.rsplit("`", 2)[-2] if "`" in where else where
    if key in ("epochs", "batch_size", "round_to") and value is not None and value < 1:
        raise TfcompError(f"{where} must be at least 1. Received: {value!r}.")
    if key in ("sparsity", "ratio") and not 0 <= value < 1:
        hint = f" Did you mean {value / 100:g}?" if 1 < value < 100 else ""
        raise TfcompError(f"{where} must be a fraction in [0, 1). Received: {value!r}.{hint}")
    if key in ("student_loss_weight", "erase") and not 0 <= value <= 1:
        raise TfcompError(f"{where} must be in [0, 1]. Received: {value!r}.")
    if key in ("temperature", "learning_rate") and not value > 0:
        raise TfcompError(f"{where} must be greater than 0. Received: {value!r}.")
    if key in ("shift", "seed") and value < 0:
        raise TfcompError(f"{where} must not be negative. Received: {value!r}.")
    return value


def _check_keys(
    value: Mapping[Any, Any], valid: Sequence[str], where: str, needed: Sequence[str]
) -> None:
    for key in value:
        if key not in valid:
            raise TfcompError(f"{where}: unknown key {key!r}.{_nearest(str(key), valid)}")
    missing = [key for key in needed if key not in value]
    if missing:
        raise TfcompError(f"{where}: `{missing[0]}` is needed.")


def _nearest(word: str, valid: Any) -> str:
    """Ends a message with the nearest valid word, or all of them."""
    near = difflib.get_close_matches(word, list(valid), n=1)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Valid are: {', '.join(valid)}." if valid else ""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return list(value) if isinstance(value, tuple) else value
