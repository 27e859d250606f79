"""Draws the packaged Fashion-MNIST sample from the full set; the same bytes every time."""

from __future__ import annotations

import io
import pathlib
import zipfile

import numpy as np
import numpy.typing as npt

from tfcomp import datasets
from tfcomp.files import write_bytes

SEED = 2017
PER_CLASS = {"train": 600, "test": 100}


def balanced(labels: npt.NDArray[np.generic], per_class: int, seed: int) -> npt.NDArray[np.intp]:
    """Indices of `per_class` examples of each class, in shuffled order."""
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(np.flatnonzero(labels == label), per_class, replace=False)
        for label in np.unique(labels)
    ]
    return rng.permutation(np.concatenate(chosen))


def packed(arrays: dict[str, npt.NDArray[np.generic]]) -> bytes:
    """An `.npz` without time stamps, so that the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content.getvalue())
    return buffer.getvalue()


def main() -> None:
    """Writes tfcomp/datasets/fashion_mnist_sample.npz."""
    full = datasets.load("fashion_mnist")
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for part, per_class in PER_CLASS.items():
        x, y = getattr(full, f"x_{part}"), getattr(full, f"y_{part}")
        index = balanced(y, per_class, SEED)
        arrays[f"x_{part}"] = x[index, ..., 0]
        arrays[f"y_{part}"] = y[index].astype(np.uint8)
    target = pathlib.Path(datasets.__file__).parent / "fashion_mnist_sample.npz"
    write_bytes(target, packed(arrays))
    print(f"{target.name}: {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
