"""Teachers that were asked beforehand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import keras
import numpy as np
import tensorflow as tf

from tfcomp.distillation.extractor import FeatureExtractor
from tfcomp.distillation.inputs import (
    DistillationInputs,
    fit_size,
    image_size,
    is_absent,
    unpack,
)
from tfcomp.distillation.own_code import own_code
from tfcomp.distillation.pairing import layer_name
from tfcomp.errors import TfcompError
from tfcomp.files import replacing
from tfcomp.graph import is_graph_model

# Samples that the teacher sees at once where the dataset is not batched.
_BATCH = 128
# Samples that it is asked about again before its stored answers are used.
_PROBE = 32
# A cache file: records, then a JSON description, its length, and this.
_MAGIC = b"TFCTEACH"
_DIGEST_BYTES = 16


def cache_teacher(
    dataset: tf.data.Dataset,
    teacher: keras.Model,
    path: str | os.PathLike[str] | None = None,
    layers: Sequence[str | int] = (),
) -> tf.data.Dataset:
    """Asks the teacher once for every sample; training then goes without it.

    The new dataset has the elements of `dataset` in the same batches, with
    `DistillationInputs` in the place of x: x itself, what the teacher says of it, and the
    outputs of the teacher's layers that were asked for. Give it to `fit` of a `Distiller`; with
    losses on outputs also of one with `teacher=None`. It may be shuffled, repeated and
    augmented; what is augmented keeps the teacher's outputs for the plain sample. To have the
    teacher see several augmented views of each sample, cache `augmented_views`.

    Samples and outputs are kept in memory, or in a file that is mapped into memory. With a
    file, a second call reads the dataset and asks the teacher about no more than the first 32
    samples, provided that every sample is in the file, whatever the order, and that the teacher
    is the same. It is held to be the same if neither its weights, its configuration (names of
    layers included) nor the code of its own classes and of functions that they name have
    changed, and if what it now says of those samples is what the file says, up to a thousandth
    of the largest value (a hundredth in half precision). Otherwise it is asked again and the
    file replaced, whole or not at all. So a change that lies elsewhere, in an imported package
    or in a file that the teacher reads, is noticed if these samples show it.

    Images of another size than the teacher's are resized for it as a `Distiller` does; the
    dataset keeps them as they are.

    Args:
        dataset: Finite, of x, (x, y) or (x, y, sample_weight), batched or not; numbers of one
            shape per component. Random augmentation in it is frozen, and misses the file.
        teacher: A built model; run with `training=False`.
        path: The file. None keeps everything in memory.
        layers: Layers of a functional or Sequential teacher, for losses that compare them: names,
            or indices into `teacher.layers`.

    Returns:
        A dataset of (DistillationInputs, …), batches of the size of the first, the last may be
        less.

    Raises:
        TfcompError: If the dataset is infinite, empty or of another kind, if the file cannot
            be written, or if there is a file but no configuration to know the teacher by.

    Example:
        >>> import keras, numpy as np, tensorflow as tf
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> data = tf.data.Dataset.from_tensor_slices((np.ones((5, 4)), np.arange(5))).batch(2)
        >>> for inputs, labels in cache_teacher(data, teacher):
        ...     print(inputs.inputs.shape, inputs.teacher_outputs.shape, labels.numpy())
        (2, 4) (2, 3) [0 1]
        (2, 4) (2, 3) [2 3]
        (1, 4) (1, 3) [4]
    """
    names = [layer_name(teacher, layer, "teacher") for layer in layers]
    source = _Source.of(dataset, teacher, names)
    if path is None:
        records = np.concatenate(list(source.records()))
        return _serve(source, records, np.arange(len(records)))
    target = pathlib.Path(path)
    if target.is_dir():
        raise TfcompError(f"`path` must be a file. Received: {target}, a folder. Add a file name.")
    key = {"teacher": fingerprint(teacher), "record": repr(source.record)}
    if names:
        key["layers"] = repr(sorted(set(names)))
    stored = _read(target, key, source.record)
    order = None if stored is None else source.order_in(stored)
    if stored is None or order is None:
        _write(target, key, source.records())
        stored = _read(target, key, source.record)
        if stored is None:
            raise TfcompError(f"{target} changed while it was written. Use one path per process.")
        order = np.arange(len(stored))
    return _serve(source, stored, order)


@dataclasses.dataclass(frozen=True)
class _Source:
    """A dataset as batches of records, one per sample: digest, data and teacher's outputs."""

    batches: tf.data.Dataset
    batched: bool
    inputs_alone: bool
    specs: tuple[tf.TensorSpec, ...]
    output_specs: tuple[tf.TensorSpec, ...]
    outputs: Any
    record: np.dtype[Any]
    ask: Callable[..., Any]
    probe: slice
    tolerance: float

    @classmethod
    def of(cls, dataset: Any, teacher: keras.Model, layers: Sequence[str]) -> _Source:
        batches, batched = _as_batches(dataset, teacher)
        extractor, size = FeatureExtractor(teacher, layers, "teacher"), image_size(teacher)
        element = batches.element_spec
        inputs_alone = not isinstance(element, tuple) or isinstance(element, DistillationInputs)
        specs = tuple(tf.nest.flatten(element))

        def answer(x: Any) -> Any:
            features = extractor(fit_size(unpack(x).inputs, size), training=False)
            return features.outputs, features.layers

        ask = tf.function(answer, reduce_retracing=True)
        inputs = element if inputs_alone else element[0]
        outputs = ask.get_concrete_function(inputs).structured_outputs
        output_specs = tuple(tf.nest.flatten(outputs))
        record = np.dtype(
            [
                ("digest", np.uint64, (_DIGEST_BYTES // 8,)),
                ("data", _fields(specs, "the dataset")),
                ("outputs", _fields(output_specs, "the teacher")),
            ]
        )
        # A teacher for batches of one size is given one of that size.
        fixed = any(tensor.shape[0] for tensor in getattr(teacher, "inputs", None) or ())
        probe, tolerance = slice(None if fixed else _PROBE), 1e-2 if _in_half(teacher) else 1e-3
        known = (batches, batched, inputs_alone, specs, output_specs, outputs, record, ask)
        return cls(*known, probe, tolerance)

    def records(self) -> Iterator[np.ndarray[Any, Any]]:
        """Batches of records, the teacher asked for each."""
        empty = True
        for element in self.batches:
            filled = self._data(element)
            inputs = element if self.inputs_alone else element[0]
            _fill(filled["outputs"], tf.nest.flatten(self.ask(inputs)))
            empty = False
            yield filled
        if empty:
            raise TfcompError("The dataset is empty: expected samples, received none.")

    def order_in(self, stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        """Where each sample is stored; None if one is not, or if the teacher has changed."""
        place = {digest.tobytes(): row for row, digest in enumerate(np.asarray(stored["digest"]))}
        order: list[int] = []
        for element in self.batches:
            rows = [place.get(digest.tobytes(), -1) for digest in self._data(element)["digest"]]
            if -1 in rows or (not order and not self._agrees(element, stored["outputs"][rows])):
                return None
            order += rows
        return np.asarray(order) if order else None

    def _agrees(self, element: Any, stored: np.ndarray[Any, Any]) -> bool:
        """Whether the teacher says of the first samples of a batch what is stored for them."""
        inputs = element if self.inputs_alone else element[0]
        first = tf.nest.map_structure(lambda tensor: tensor[self.probe], inputs)
        said = [np.asarray(leaf) for leaf in tf.nest.flatten(self.ask(first))]
        return all(
            _close(stored[f"f{index}"][: len(leaf)], leaf, self.tolerance)
            for index, leaf in enumerate(said)
        )

    def _data(self, element: Any) -> np.ndarray[Any, Any]:
        leaves = tf.nest.flatten(element)
        filled = np.zeros(leaves[0].shape[0], self.record)
        _fill(filled["data"], leaves)
        data = filled["data"].tobytes()
        size = self.record["data"].itemsize
        for row in range(len(filled)):
            sample = memoryview(data)[row * size : (row + 1) * size]
            digest = hashlib.blake2b(sample, digest_size=_DIGEST_BYTES).digest()
            filled["digest"][row] = np.frombuffer(digest, np.uint64)
        return filled


def _as_batches(dataset: Any, teacher: keras.Model) -> tuple[tf.data.Dataset, bool]:
    if not isinstance(dataset, tf.data.Dataset):
        raise TfcompError(
            f"Expected a tf.data.Dataset. Received: {type(dataset).__name__}. Wrap arrays with "
            "tf.data.Dataset.from_tensor_slices((x, y)).batch(128)."
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise TfcompError(
            "Expected a finite dataset, received one that repeats. Repeat the result."
        )
    element = dataset.element_spec
    leaves = tf.nest.flatten(element)
    if not all(isinstance(leaf, tf.TensorSpec) for leaf in leaves):
        raise TfcompError(f"Expected a dataset of dense tensors. Received: {element}.")
    alone = not isinstance(element, tuple) or isinstance(element, DistillationInputs)
    known = unpack(element if alone else element[0])
    if not is_absent(known.teacher_outputs):
        raise TfcompError("Expected plain inputs, received those of cache_teacher. Cache once.")
    if not isinstance(teacher, keras.Model) or not teacher.built:
        raise TfcompError(f"Expected a built keras.Model as teacher. Received: {teacher!r}.")
    if not is_graph_model(teacher):
        return dataset, True
    received, expected = tf.nest.flatten(known.inputs)[0].shape, teacher.inputs[0].shape
    rank = received.rank
    if rank not in (len(expected), len(expected) - 1) or not _fits(teacher, received, expected):
        raise TfcompError(
            f"The dataset does not fit the teacher: expected inputs of {len(expected)} axes with "
            f"the batch, {tuple(expected)}, received {rank}, {received}. Compare "
            "dataset.element_spec with teacher.inputs."
        )
    return (dataset, True) if rank == len(expected) else (dataset.batch(_BATCH), False)


def _fits(teacher: keras.Model, received: tf.TensorShape, expected: Any) -> bool:
    """Whether the teacher's one input takes samples of a shape; images may have any size."""
    if len(teacher.inputs) > 1:
        return True
    axes = len(expected) - 1
    pairs = list(zip(received[-axes:] if axes else (), expected[1:], strict=True))
    if image_size(teacher) is not None:
        pairs = pairs[2:]
    return all(a == b or None in (a, b) for a, b in pairs)


def _fields(specs: tuple[Any, ...], owner: str) -> np.dtype[Any]:
    """The record of one sample; axis 0 of the specs is the batch."""
    fields = []
    for index, spec in enumerate(specs):
        shape, kind = spec.shape, spec.dtype.as_numpy_dtype
        known = shape.rank is not None and shape.rank > 0 and shape[1:].is_fully_defined()
        if not known or np.dtype(kind).kind not in "biuf":
            raise TfcompError(
                f"Cannot cache a component of {owner}: expected numbers of one known shape, "
                f"received {spec.dtype.name} of shape {shape}. Map it to such before caching."
            )
        fields.append((f"f{index}", kind, tuple(shape[1:])))
    return np.dtype(fields)


def _fill(target: np.ndarray[Any, Any], leaves: list[Any]) -> None:
    for index, leaf in enumerate(leaves):
        if leaf.shape[0] != len(target):
            raise TfcompError(
                f"Components of one batch must have one entry per sample: expected {len(target)}, "
                f"received {leaf.shape[0]}."
            )
        target[f"f{index}"] = leaf.numpy()


def _serve(
    source: _Source, records: np.ndarray[Any, Any], order: np.ndarray[Any, Any]
) -> tf.data.Dataset:
    """The records in the given order, in batches like the source's."""
    specs = (*source.specs, *source.output_specs)
    size = _first_batch(source) if source.batched else _BATCH
    in_order = bool(np.array_equal(order, np.arange(len(order))))

    def read(start: Any) -> list[np.ndarray[Any, Any]]:
        # Slices of consecutive records spare a copy.
        rows = slice(start, start + size) if in_order else order[start : start + size]
        batch = records[rows]
        return [
            np.ascontiguousarray(batch[part][name])
            for part in ("data", "outputs")
            for name in batch.dtype[part].names or ()
        ]

    def load(start: Any) -> tuple[Any, ...]:
        flat = tf.numpy_function(read, [start], [spec.dtype for spec in specs], stateful=False)
        for tensor, spec in zip(flat, specs, strict=True):
            tensor.set_shape([None, *spec.shape[1:]])
        return _element(source, flat)

    batches = tf.data.Dataset.range(0, len(order), size).map(load)
    if source.batched:
        return batches
    # Without its length Keras takes the end of an epoch for a mistake, and says so.
    return batches.unbatch().apply(tf.data.experimental.assert_cardinality(len(order)))


def _element(source: _Source, flat: list[Any]) -> tuple[Any, ...]:
    count = len(source.specs)
    element = tf.nest.pack_sequence_as(source.batches.element_spec, flat[:count])
    # Datasets would stack lists of tensors; tuples stay tuples.
    outputs, layers = tf.nest.pack_sequence_as(_tuples(source.outputs), flat[count:])
    inputs, *rest = (element,) if source.inputs_alone else element
    return (unpack(inputs)._replace(teacher_outputs=outputs, teacher_layers=layers or ()), *rest)


def _tuples(structure: Any) -> Any:
    if isinstance(structure, dict):
        return {key: _tuples(value) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return tuple(_tuples(value) for value in structure)
    return structure


def _first_batch(source: _Source) -> int:
    for element in source.batches.take(1):
        return int(tf.nest.flatten(element)[0].shape[0])
    raise TfcompError("The dataset is empty: expected samples, received none.")


def _close(stored: Any, said: Any, tolerance: float) -> bool:
    """Whether two answers differ by no more than other hardware may make them differ."""
    stored, said = (np.asarray(one, np.float64) for one in (stored, said))
    largest = np.abs(stored[np.isfinite(stored)]).max(initial=0.0)
    return bool(np.allclose(said, stored, rtol=0.0, atol=tolerance * largest, equal_nan=True))


def _in_half(model: keras.Model) -> bool:
    half = ("float16", "bfloat16")
    return any(layer.compute_dtype in half for layer in (model, *model.layers))


def _write(
    target: pathlib.Path, key: dict[str, str], batches: Iterator[np.ndarray[Any, Any]]
) -> None:
    with replacing(target) as temporary, open(temporary, "wb") as file:
        for batch in batches:
            file.write(batch.tobytes())
        description = json.dumps(key).encode()
        file.write(description + struct.pack("<Q", len(description)) + _MAGIC)


def _read(
    path: pathlib.Path, key: dict[str, str], record: np.dtype[Any]
) -> np.ndarray[Any, Any] | None:
    """The records of the file, mapped; None if it is absent, damaged or of other things."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        payload = _payload_bytes(file, key)
    if not payload or payload % record.itemsize:
        return None
    return np.memmap(path, dtype=record, mode="r", shape=(payload // record.itemsize,))


def _payload_bytes(file: BinaryIO, key: dict[str, str]) -> int:
    """Length of the records if the file is whole and described by `key`, else 0."""
    footer = 8 + len(_MAGIC)
    size = file.seek(0, os.SEEK_END)
    if size < footer:
        return 0
    file.seek(size - footer)
    length, magic = struct.unpack(f"<Q{len(_MAGIC)}s", file.read(footer))
    if magic != _MAGIC or length > size - footer:
        return 0
    file.seek(size - footer - length)
    return int(size - footer - length) if file.read(length) == json.dumps(key).encode() else 0


def fingerprint(teacher: keras.Model) -> str:
    """A name for a model that changes with its weights, configuration and own code, see `own_code`.

    Args:
        teacher: A built model.

    Returns:
        64 hexadecimal digits.

    Raises:
        TfcompError: If the model has no configuration.
    """
    digest = hashlib.sha256()
    try:
        config = json.dumps(teacher.get_config(), sort_keys=True, default=str)
    except NotImplementedError as error:
        raise TfcompError(
            "A changed teacher must be told from an old one: expected a teacher with get_config(), "
            f"received {teacher.name!r}, which has none ({str(error).strip().splitlines()[0]}). "
            "Define it, or leave `path` out."
        ) from error
    digest.update(config.encode())
    digest.update(own_code(teacher))
    for value in teacher.get_weights():
        digest.update(repr((value.shape, value.dtype)).encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
