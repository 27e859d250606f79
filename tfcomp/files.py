"""Files that are either the old ones or the new ones, never half of either."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from tfcomp.errors import TfcompError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; on success it is synced and takes `path`'s name.

    The temporary name keeps the suffix of `path`, which Keras and LiteRT look at. On an
    error, Ctrl-C included, the temporary file is removed and `path` is left as it was.

    Args:
        path: The file to be written.

    Yields:
        The path to write to, in the same folder.

    Raises:
        TfcompError: If the folder cannot be written to, or the disk is full.

    Example:
        >>> import pathlib, tempfile
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    target = pathlib.Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix
        )
        os.close(handle)
    except OSError as error:
        raise _unwritable(target, error) from error
    temporary = pathlib.Path(name)
    try:
        yield temporary
        _sync(temporary)
        # mkstemp gives 0600; a file that is shipped has the permissions of any other.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def gzip_bytes(path: str | os.PathLike[str]) -> int:
    """Size of the file in bytes after gzip at level 9, without a time stamp."""
    return len(gzip.compress(pathlib.Path(path).read_bytes(), compresslevel=9, mtime=0))


def _sync(path: pathlib.Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritable(target: pathlib.Path, error: OSError) -> TfcompError:
    reason = error.strerror or str(error)
    return TfcompError(
        f"Cannot write {target}: {reason}. What was there before is unchanged. "
        "Free space or choose another folder."
    )
