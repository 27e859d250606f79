"""What is in a file, `.keras` or `.tflite`, told as a table."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import re
import zipfile
from typing import TYPE_CHECKING, Any

import keras
from rich.console import Group, RenderableType
from rich.text import Text

from tfcomp.errors import DamagedFileError, TfcompError
from tfcomp.profiling.profile import FileSize, Profile, file_size, profile
from tfcomp.profiling.render import plain

if TYPE_CHECKING:
    from tfcomp.conversion.audit import Audit
    from tfcomp.conversion.edgetpu import EdgeTpuReport


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a file holds; printed, it is a readable table.

    Attributes:
        size: Its bytes, raw and gzip.
        profile: Layers of a `.keras`, else None.
        audit: Ops of a `.tflite`, else None.
        edgetpu: What the Edge TPU would map of a `.tflite`, else None.
    """

    size: FileSize
    profile: Profile | None = None
    audit: Audit | None = None
    edgetpu: EdgeTpuReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types, what is absent left out."""
        found: dict[str, Any] = {"size": self.size.to_dict()}
        for key in ("profile", "audit", "edgetpu"):
            part = getattr(self, key)
            if part is not None:
                found[key] = part.to_dict()
        return found

    def __rich__(self) -> RenderableType:
        if self.profile is not None:
            return Group(Text(str(self.size)), self.profile)
        parts: list[Any] = [part for part in (self.audit, self.edgetpu) if part is not None]
        return Group(parts[0], Text(), *parts[1:])

    def __str__(self) -> str:
        return plain(self)


def inspect_file(path: str | os.PathLike[str]) -> Inspection:
    """Reads a `.keras` or a `.tflite` and tells what is in it.

    Args:
        path: The file; its suffix says which of the two it is.

    Returns:
        Layers, parameters, non-zeros, multiply-adds and bytes of a `.keras`; ops, types, float
        islands, runtimes and Edge TPU mapping of a `.tflite`.

    Raises:
        TfcompError: If there is no such file, it is of neither kind, or a class in a `.keras`
            is not known here.
        DamagedFileError: If it is empty, truncated or damaged.
    """
    file = pathlib.Path(path)
    if file.suffix == ".keras":
        model = load_keras(file)
        return Inspection(file_size(file), profile=profile(model))
    if file.suffix != ".tflite":
        raise TfcompError(
            f"Expected a .keras or a .tflite file, received {file.name!r}. "
            "Save a model with model.save('name.keras') or tfcomp.convert."
        )
    # Here and not above: reading a `.keras` needs nothing of the conversion, which in turn
    # uses this package's tables.
    from tfcomp.conversion.audit import audit
    from tfcomp.conversion.edgetpu import analyse

    found = audit(file)
    size = FileSize(file, found.nbytes, found.gzip_bytes)
    return Inspection(size, audit=found, edgetpu=analyse(found))


def load_keras(path: str | os.PathLike[str]) -> keras.Model:
    """Loads a `.keras` file for inspection, uncompiled, or says in one line why not.

    Args:
        path: The file.

    Returns:
        The model.

    Raises:
        DamagedFileError: If the file is empty, truncated or no `.keras` archive.
        TfcompError: If there is no such file, or one of its classes is not known.
    """
    file = pathlib.Path(path)
    _register(_check_archive(file))
    try:
        return keras.saving.load_model(file, compile=False)
    except (TypeError, ValueError, KeyError, ImportError, AttributeError, OSError) as error:
        raise _unloadable(file, error) from error


def _register(config: str) -> None:
    """Imports the modules of this package that a model's configuration names.

    Its layers are registered with Keras on import, and whoever inspects a file need not know
    which of them are in it.
    """
    for module in sorted(set(re.findall(r'"module": "(tfcomp(?:\.\w+)+)"', config))):
        # A module that has gone is told by Keras, which names the class.
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def _check_archive(file: pathlib.Path) -> str:
    """The model's configuration out of an archive that is whole."""
    config = ""
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            damaged = archive.testzip()
            if damaged is None and "config.json" in names:
                config = archive.read("config.json").decode("utf-8")
                json.loads(config)
    except zipfile.BadZipFile as error:
        empty = "an empty file" if not file.stat().st_size else "a damaged or truncated one"
        raise _damaged(file, empty) from error
    except (EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise _damaged(file, "a damaged or truncated one") from error
    except OSError as error:
        raise TfcompError(f"Cannot read {file}: {error.strerror or error}.") from error
    if damaged is not None:
        raise _damaged(file, f"one whose part {damaged!r} is damaged")
    lacking = {"config.json", "metadata.json"} - names
    if lacking:
        raise _damaged(file, f"an archive without {' and '.join(sorted(lacking))}")
    return config


def _damaged(file: pathlib.Path, received: str) -> DamagedFileError:
    return DamagedFileError(
        f"{file}: expected a .keras archive, received {received}. Save or copy it again."
    )


def _unloadable(file: pathlib.Path, error: Exception) -> TfcompError:
    text = " ".join(str(error).split())
    if "Lambda" in text and ("safe_mode" in text or "unsafe" in text):
        return TfcompError(
            f"{file}: it holds a Lambda layer, whose Python code would run on loading. If you "
            "trust it, load it with keras.saving.load_model(path, safe_mode=False) and pass the "
            "model to tfcomp.profile."
        )
    unknown = re.search(r"Could not locate (?:class|function) '([^']+)'", text)
    if unknown:
        return TfcompError(
            f"{file}: it holds the class {unknown.group(1)!r}, which is not known here. Import "
            "the module that registers it with @keras.saving.register_keras_serializable() first."
        )
    if isinstance(error, OSError):
        return _damaged(file, f"one whose weights cannot be read ({text[:100]})")
    reason = text if len(text) <= 200 else f"{text[:197]}..."
    return TfcompError(f"{file}: Keras {keras.__version__} cannot load it: {reason}")
