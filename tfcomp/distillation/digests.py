"""Digests that tell models and data from others."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcomp.distillation.own_code import own_code
from tfcomp.errors import TfcompError

_DIGEST_BYTES = 16


def digest(*parts: str | bytes | None) -> str:
    """A digest of texts, in order."""
    total = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part or b""
        total.update(len(raw).to_bytes(8, "little") + raw)
    return total.hexdigest()


def architecture(model: keras.Model) -> str:
    """Changes with a model's configuration, its own code and the shapes of its weights.

    Of names only what Keras does not number counts: `dense_3` and `dense_7` are the same, so
    that a model is known again when a script or a notebook makes it once more.
    """
    try:
        config = json.loads(json.dumps(model.get_config(), sort_keys=True, default=str))
    except NotImplementedError as error:
        raise TfcompError(
            f"A changed {model.name!r} must be told from an old one: expected a model with "
            "get_config(), received one without. Define it, or leave `directory` out."
        ) from error
    shapes = [(tuple(v.shape), v.dtype) for v in model.variables]
    plain = json.dumps(_renamed(config, {}), sort_keys=True)
    return digest(type(model).__qualname__, plain, repr(shapes), own_code(model))


def model_digest(model: keras.Model) -> str:
    """Changes with architecture and weights."""
    return digest(architecture(model), weights_digest(model))


def unnamed(config: Any) -> Any:
    """A serialised configuration without the names of its objects, which Keras numbers."""
    return _without(("name", _SHARED), config)


def unshared(config: Any) -> Any:
    """A serialised configuration without the marks that Keras sets when it saves a whole model."""
    return _without((_SHARED,), config)


_SHARED = "shared_object_id"


def _without(keys: tuple[str, ...], config: Any) -> Any:
    if isinstance(config, dict):
        return {k: _without(keys, value) for k, value in config.items() if k not in keys}
    if isinstance(config, (list, tuple)):
        return [_without(keys, item) for item in config]
    return config


def _renamed(config: Any, new: dict[str, str]) -> Any:
    """Names numbered anew in order of appearance, here and where layers refer to each other."""
    if not new:
        stems: dict[str, int] = {}
        for name in _names(config):
            stem = re.sub(r"_\d+$", "", name)
            if name not in new:
                stems[stem] = stems.get(stem, 0) + 1
                new[name] = f"{stem}#{stems[stem]}"
    if isinstance(config, dict):
        return {new.get(key, key): _renamed(value, new) for key, value in config.items()}
    if isinstance(config, list):
        return [_renamed(item, new) for item in config]
    return new.get(config, config) if isinstance(config, str) else config


def _names(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(config.get("name"), str):
            yield config["name"]
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _names(item)


def weights_digest(model: keras.Model) -> str:
    """Changes with a model's weights, in order."""
    arrays = (np.ascontiguousarray(value) for value in model.get_weights())
    return digest(*(repr((a.shape, a.dtype)).encode() + a.tobytes() for a in arrays))


def data_digest(data: Any) -> str:
    """Changes with what `fit` is given to learn from.

    Args:
        data: Arrays, tensors, numbers, texts, None or a finite `tf.data.Dataset`, alone or in
            lists, tuples and dicts. A dataset is read twice; the order of its samples does not
            count.

    Returns:
        The digest.

    Raises:
        TfcompError: If the data are of another kind, endless, or other at each reading.

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> data = tf.data.Dataset.range(6)
        >>> data_digest(data.batch(4)) == data_digest(data.shuffle(6).batch(4))
        True
    """
    if isinstance(data, Mapping):
        return digest("{}", *(part for k in sorted(data) for part in (k, data_digest(data[k]))))
    if isinstance(data, (list, tuple)):
        return digest("[]", *(data_digest(item) for item in data))
    if data is None or isinstance(data, (bool, int, float, str)):
        return digest(repr(data))
    if isinstance(data, tf.data.Dataset):
        return _dataset_digest(data)
    if isinstance(data, (np.ndarray, np.generic)) or tf.is_tensor(data):
        array = np.ascontiguousarray(data)
        return digest(repr((array.shape, array.dtype)), array.tobytes())
    raise TfcompError(
        f"Other data must be told from these: expected arrays or a tf.data.Dataset, received "
        f"{type(data).__name__}. Give the data a name of yours with `data_key`."
    )


def _dataset_digest(dataset: tf.data.Dataset) -> str:
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise TfcompError(
            "Other data must be told from these: expected a finite dataset, received one that "
            "repeats. Give the data a name of yours with `data_key`."
        )
    first, second = (sum(_samples(dataset)) % 2 ** (8 * _DIGEST_BYTES) for _ in range(2))
    if first != second:
        raise TfcompError(
            "Other data must be told from these: expected a dataset with the same samples at "
            "each reading, received others the second time (random augmentation, for one). "
            "Give the data a name of yours with `data_key`."
        )
    return digest(repr(dataset.element_spec), str(first))


def _samples(dataset: tf.data.Dataset) -> Iterator[int]:
    """A number for each sample, whatever the batches."""
    for element in dataset:
        leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(element)]
        counts = {leaf.shape[:1] for leaf in leaves}
        batched = len(counts) == 1 and counts != {()}
        rows = zip(*leaves, strict=True) if batched else [tuple(leaves)]
        for row in rows:
            sample = hashlib.blake2b(digest_size=_DIGEST_BYTES)
            for value in row:
                sample.update(np.ascontiguousarray(value).tobytes())
            yield int.from_bytes(sample.digest(), "little")
