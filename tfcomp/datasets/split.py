"""Images and labels, split for training and testing."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import numpy.typing as npt

from tfcomp.errors import TfcompError


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Arrays for training and testing a classifier.

    Attributes:
        name: What a report calls it.
        x_train: Training inputs; images are uint8 of shape (N, height, width, channels).
        y_train: Training labels, integers of shape (N,).
        x_test: Test inputs.
        y_test: Test labels.
        licence: SPDX identifier of the data's licence; "" where unknown.
    """

    name: str
    x_train: npt.NDArray[np.generic]
    y_train: npt.NDArray[np.generic]
    x_test: npt.NDArray[np.generic]
    y_test: npt.NDArray[np.generic]
    licence: str = ""

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if len(x) != len(y) or not len(x):
                raise TfcompError(
                    f"{self.name}: expected as many labels as inputs, and at least one. "
                    f"Received: x_{part} of shape {x.shape}, y_{part} of shape {y.shape}."
                )
            if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
                raise TfcompError(
                    f"{self.name}: expected y_{part} to hold one integer label per input. "
                    f"Received: dtype {y.dtype}, shape {y.shape}."
                )

    @property
    def classes(self) -> int:
        """Number of classes: the largest label plus one."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.x_train.shape[1:])

    def fingerprint(self) -> str:
        """SHA-256 over all arrays, by which a resumed run knows its data again."""
        digest = hashlib.sha256()
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
