"""One model taught by another, and kept on disk."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import keras

from tfcomp.distillation.digests import architecture, digest, model_digest, weights_digest
from tfcomp.errors import DamagedFileError, TfcompError
from tfcomp.files import replacing, write_json
from tfcomp.graph import is_graph_model, rebuild, trace


@dataclasses.dataclass(frozen=True, eq=False)
class Lesson:
    """What came of teaching a model once.

    Attributes:
        student: The name of the model that was taught.
        teacher: The name of the one that taught it.
        model: The model, trained.
        evaluation: Its metrics on the validation data, by name; empty without such data.
        history: The logs of `fit`, a value per epoch.
        reused: Whether it was read from a file, not trained to its end now.
        key: By what it is known again, in parts; empty without a directory.
    """

    student: str
    teacher: str
    model: keras.Model
    evaluation: dict[str, float]
    history: dict[str, list[float]]
    reused: bool
    key: dict[str, str]

    def identity(self) -> str:
        """What a later lesson knows this one's model by."""
        return digest(json.dumps(self.key, sort_keys=True), weights_digest(self.model))


@dataclasses.dataclass(frozen=True)
class LessonFiles:
    """A finished lesson in a directory: the model as NAME.keras, all else as NAME.json.

    The description is written last: without it there is no lesson. Both files are whole or
    absent, whenever the process is ended.
    """

    directory: pathlib.Path
    name: str

    @property
    def model_path(self) -> pathlib.Path:
        """The model's file."""
        return self.directory / f"{self.name}.keras"

    @property
    def description_path(self) -> pathlib.Path:
        """The file of key, evaluation and history."""
        return self.directory / f"{self.name}.json"

    def keep(self, lesson: Lesson) -> None:
        """Writes a lesson, over what was left of one that did not finish."""
        with replacing(self.model_path) as temporary:
            lesson.model.save(temporary)
        description = {
            "key": lesson.key,
            "weights": weights_digest(lesson.model),
            "evaluation": lesson.evaluation,
            "history": lesson.history,
        }
        write_json(self.description_path, description)

    def read(
        self, student: str, teacher: str, key: dict[str, str], make: Callable[[], keras.Model]
    ) -> Lesson | None:
        """The lesson that was kept; None if there is none.

        Args:
            student: Name of the student.
            teacher: Name of the teacher.
            key: What the lesson must have been given with.
            make: Makes the model that the weights are for.

        Raises:
            TfcompError: If the lesson was given with something else.
            DamagedFileError: If the model is not the one that was kept.
        """
        if not self.description_path.exists():
            return None
        try:
            kept = json.loads(self.description_path.read_text())
            other = differences(kept["key"], key)
        except (ValueError, KeyError, AttributeError) as error:
            raise self._damaged() from error
        if other:
            raise TfcompError(
                f"{self.directory} holds {self.name!r} from a course that differs in {other}: "
                "expected the same, received others. Choose another directory"
                + (
                    ", or seed what draws the weights of the models before fit."
                    if "teacher" in other or "student" in other
                    else ", or call fit as before."
                )
            )
        model = make()
        try:
            model.load_weights(self.model_path)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise self._damaged() from error
        if weights_digest(model) != kept["weights"]:
            raise self._damaged()
        return Lesson(student, teacher, model, kept["evaluation"], kept["history"], True, key)

    def _damaged(self) -> DamagedFileError:
        return DamagedFileError(
            f"{self.model_path} must be the model that {self.description_path.name} describes, "
            "received another or none. Delete both to give the lesson again."
        )


# Parts of a key that can be read.
_LEGIBLE = ("callbacks", "directory")


def differences(kept: dict[str, str], key: dict[str, str]) -> str:
    """In what two keys differ, as a part of a sentence; empty where they do not.

    Args:
        kept: The key of a lesson that was given.
        key: Of the same lesson as it is asked for now.

    Example:
        >>> differences({"data": "a", "callbacks": "Saver"}, {"data": "b", "callbacks": ""})
        'callbacks (Saver before, none now), data'
    """
    other = sorted(part for part in key if kept.get(part) != key[part])
    return ", ".join(
        f"{part} ({kept.get(part) or 'none'} before, {key[part] or 'none'} now)"
        if part in _LEGIBLE
        else part
        for part in other
    )


class Source:
    """Where a student comes from: a model to start from, or a function that makes one.

    Every lesson gets a model of its own: a copy of the given one with its weights, or what the
    function returns.

    Args:
        given: The model or the function.
        name: What the student is called.

    Raises:
        TfcompError: If it is neither.
    """

    def __init__(self, given: Any, name: str) -> None:
        is_model = isinstance(given, keras.Model)
        made = given() if callable(given) and not is_model else given
        if not isinstance(made, keras.Model) or not made.built:
            raise TfcompError(
                f"{name} must be a built keras.Model or a function that makes one. "
                f"Received: {made!r}."
            )
        self.name = name
        self.given: keras.Model | Callable[[], keras.Model] = given
        self._model: keras.Model = made
        self._function: Callable[[], keras.Model] | None = None if is_model else given

    def get_config(self) -> dict[str, Any]:
        """The model or the function, as Keras describes it.

        Raises:
            TfcompError: If a file cannot name the function.
        """
        if self._function is not None and not inspect.isfunction(self._function):
            raise TfcompError(
                f"A file can hold a function by its name alone: expected one for {self.name} that "
                f"was made by def, received {self._function!r}. Define it so, or give a model."
            )
        config: dict[str, Any] = keras.saving.serialize_keras_object(self.given)
        return config

    def key(self) -> str:
        """Changes with the architecture, and with the weights to start from if they are given."""
        return (model_digest if self._function is None else architecture)(self._model)

    def make(self) -> keras.Model:
        """A model to be trained."""
        if self._function is None:
            return copy_model(self._model)
        model = self._function()
        if model is self._model:
            raise TfcompError(
                f"The function for {self.name} must make a new model each time: expected two "
                f"models, received {model.name!r} twice. Make the model inside the function."
            )
        return model


def copy_model(model: keras.Model, new_weights: bool = False) -> keras.Model:
    """A model of its own with the same architecture.

    Args:
        model: Any model with a configuration; a functional or Sequential one comes back as a
            flat functional one.
        new_weights: Whether weights are drawn anew. Layers that do not learn, frozen ones and
            a `Normalization` for instance, keep theirs; a model frozen as a whole learns again.

    Raises:
        TfcompError: If a subclassed model cannot be made from its configuration.
    """
    if is_graph_model(model):
        copied = rebuild(model, copy_weights=not new_weights)
        if new_weights:
            _keep_what_does_not_learn(model, copied)
        return copied
    try:
        copied = type(model).from_config(model.get_config())
        copied.build_from_config(model.get_build_config())
        # As Keras does when it loads: without a `build` of its own a model does not say so.
        copied.built = copied.built or len(copied.weights) == len(model.weights)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise TfcompError(
            f"{model.name!r} is subclassed and cannot be copied: expected get_config() and "
            f"from_config() that agree, received {str(error).strip().splitlines()[0]!r}. Define "
            "them, or give a function that makes the model."
        ) from error
    if not new_weights:
        copied.set_weights(model.get_weights())
    return copied


def _keep_what_does_not_learn(model: keras.Model, copied: keras.Model) -> None:
    if not model.trainable_weights:
        for layer in copied.layers:
            layer.trainable = True
    new_layers = {layer.name: layer for layer in copied.layers}
    for name, layer in trace(model).ops.items():
        new = new_layers.get(name)
        if new is not None and new.weights and not new.trainable_weights:
            new.set_weights(layer.get_weights())
            if isinstance(new, keras.layers.Normalization):
                # What it computes with is derived from its weights, and only when told to.
                new.finalize_state()
