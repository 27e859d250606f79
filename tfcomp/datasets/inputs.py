"""Inputs without labels, for calibration."""

from __future__ import annotations

import os
import pathlib
import zipfile

import numpy as np
import numpy.typing as npt

from tfcomp.errors import DamagedFileError, TfcompError


def load_inputs(path: str | os.PathLike[str]) -> npt.NDArray[np.generic]:
    """Inputs from a `.npy`, or the array `x_train` or `x` of an `.npz`.

    Args:
        path: The file.

    Returns:
        The array, examples along its first axis.

    Raises:
        TfcompError: If there is no such file or array.
    """
    file = pathlib.Path(path)
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            for name in ("x_train", "x"):
                if name in loaded:
                    return loaded[name]
            found = ", ".join(sorted(loaded)) or "none"
    except FileNotFoundError:
        raise TfcompError(f"The file {file} does not exist.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedFileError(f"{file} cannot be read as .npy or .npz ({error}).") from error
    raise TfcompError(f"{file}: expected an array `x_train` or `x`. Found: {found}.")
