"""Full data sets, from a folder of the user's or through `keras.datasets`."""

from __future__ import annotations

import itertools
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.datasets.fashion_mnist import fashion_mnist_sample
from tfcomp.datasets.split import Dataset
from tfcomp.errors import DamagedFileError, TfcompError

Arrays = npt.NDArray[np.generic]

_TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
_LICENCES = {"fashion_mnist": "MIT"}


def load(name: str) -> Dataset:
    """A data set by name, or from an `.npz` file of the user's own.

    `fashion_mnist_sample` is in the package. The full sets `mnist`, `fashion_mnist` and
    `cifar10` are read from `NAME.npz` in the folder that the environment variable
    `TFCOMP_DATA` names; without it, `keras.datasets` is asked, which downloads.

    Args:
        name: One of the names above, or the path of an `.npz` with the arrays `x_train`,
            `y_train`, `x_test` and `y_test`.

    Returns:
        The data set; images as uint8 of shape (N, height, width, channels).

    Raises:
        TfcompError: If it is not to be had; says what is missing.

    Example:
        >>> load("fashion_mnist_sample").name
        'Fashion-MNIST sample'
    """
    if name == "fashion_mnist_sample":
        return fashion_mnist_sample()
    if name in _TITLES:
        folder = os.environ.get("TFCOMP_DATA")
        arrays = _read(pathlib.Path(folder) / f"{name}.npz") if folder else _from_keras(name)
        return _dataset(_TITLES[name], arrays, _LICENCES.get(name, ""))
    if not name.endswith(".npz"):
        known = ", ".join(["fashion_mnist_sample", *_TITLES])
        raise TfcompError(
            f"Unknown data {name!r}: expected one of {known}, or the path of an .npz file."
        )
    return _dataset(pathlib.Path(name).stem, _read(pathlib.Path(name)), "")


def detection_folder(name: str) -> pathlib.Path:
    """Folder of a detection set in VOC form below `TFCOMP_DATA`, such as `bccd`.

    Raises:
        TfcompError: If `TFCOMP_DATA` is not set or has no such folder.
    """
    folder = os.environ.get("TFCOMP_DATA")
    if not folder:
        raise TfcompError(
            f"The data set {name!r} is needed: set TFCOMP_DATA to the folder that holds {name}/."
        )
    path = pathlib.Path(folder) / name
    if not (path / "Annotations").is_dir():
        raise TfcompError(
            f"The data set {name!r} is missing: expected {path}/Annotations with VOC files."
        )
    return path


def _read(path: pathlib.Path) -> dict[str, Arrays]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise TfcompError(
            f"Data file {path} does not exist. Check the path or TFCOMP_DATA."
        ) from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DamagedFileError(
            f"Data file {path} cannot be read as .npz ({error}). Replace it by a whole one."
        ) from error


def _from_keras(name: str) -> dict[str, Arrays]:
    loaders: dict[str, Callable[[], Any]] = {
        "mnist": keras.datasets.mnist.load_data,
        "fashion_mnist": keras.datasets.fashion_mnist.load_data,
        "cifar10": keras.datasets.cifar10.load_data,
    }
    try:
        (x_train, y_train), (x_test, y_test) = loaders[name]()
    except Exception as error:
        # Whatever the downloader raised, the user's way out is the same.
        raise TfcompError(
            f"The data set {name!r} is missing: set TFCOMP_DATA to a folder with {name}.npz "
            f"(downloading it failed: {str(error).splitlines()[0]})."
        ) from error
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _dataset(name: str, arrays: dict[str, Arrays], licence: str) -> Dataset:
    if "train_jpeg" in arrays:
        arrays = _from_jpeg(arrays)
    missing = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in arrays]
    if missing:
        raise TfcompError(
            f"{name}: expected arrays x_train, y_train, x_test, y_test. "
            f"Missing: {', '.join(missing)}. Found: {', '.join(sorted(arrays))}."
        )
    x_train, x_test = (_with_channel(arrays[f"x_{part}"]) for part in ("train", "test"))
    y_train, y_test = (_flat(arrays[f"y_{part}"]) for part in ("train", "test"))
    return Dataset(name, x_train, y_train, x_test, y_test, licence)


def _flat(labels: Arrays) -> Arrays:
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _with_channel(images: Arrays) -> Arrays:
    return images[..., None] if images.ndim == 3 else images


def _from_jpeg(arrays: dict[str, Arrays]) -> dict[str, Arrays]:
    """Decodes images kept as one array of JPEG bytes and the offset at which each starts."""
    import tensorflow as tf

    decoded: dict[str, Arrays] = {}
    for part in ("train", "test"):
        data = arrays[f"{part}_jpeg"].tobytes()
        offsets = arrays[f"{part}_offsets"]
        decoded[f"x_{part}"] = np.stack(
            [
                tf.io.decode_jpeg(data[start:end], channels=3).numpy()
                for start, end in itertools.pairwise(offsets)
            ]
        )
        decoded[f"y_{part}"] = arrays[f"{part}_labels"]
    return decoded
