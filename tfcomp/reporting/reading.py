"""Reading a report, of which any field may be missing, null or of the wrong type."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfcomp.errors import TfcompError
from tfcomp.reporting import intervals

SCHEMA = 1


def check_report(report: Any) -> None:
    """Refuses what is not a report of the schema that this version reads.

    Raises:
        TfcompError: If `report` is not a mapping, or of another schema version.

    Example:
        >>> check_report({"schema": 1})
    """
    if not isinstance(report, Mapping):
        raise TfcompError(
            f"Expected a report (a mapping, as in report.json), received "
            f"{type(report).__name__}. Pass the parsed content of a run's report.json."
        )
    version = report.get("schema")
    if version is not None and version != SCHEMA:
        raise TfcompError(
            f"Expected a report of schema {SCHEMA}, received schema {version!r}. "
            "Use the tfcomp that wrote it, or run the recipe again."
        )


def get(data: Any, *keys: str) -> Any:
    """The value under nested `keys`, or None where any is missing."""
    for key in keys:
        if not isinstance(data, Mapping):
            return None
        data = data.get(key)
    return data


def mapping(data: Any, *keys: str) -> Mapping[Any, Any]:
    """The mapping under `keys`, or an empty one."""
    value = get(data, *keys)
    return value if isinstance(value, Mapping) else {}


def sequence(data: Any, *keys: str) -> list[Any]:
    """The list under `keys`, or an empty one."""
    value = get(data, *keys)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    return []


def rows(data: Any, *keys: str) -> list[Mapping[Any, Any]]:
    """The mappings in the list under `keys`."""
    return [item for item in sequence(data, *keys) if isinstance(item, Mapping)]


def text(data: Any, *keys: str) -> str | None:
    """The text or number under `keys` as text that any page can hold, or None."""
    return _as_text(get(data, *keys))


def texts(data: Any, *keys: str) -> list[str]:
    """The texts and numbers in the list under `keys`."""
    return [found for item in sequence(data, *keys) if (found := _as_text(item)) is not None]


def named_texts(data: Any, *keys: str) -> dict[str, str]:
    """The texts and numbers in the mapping under `keys`, by name."""
    pairs = ((clean(key), _as_text(value)) for key, value in mapping(data, *keys).items())
    return {key: value for key, value in pairs if value is not None}


def _as_text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return clean(value)


def clean(value: Any) -> str:
    """`value` as text, without control characters and lone surrogates."""
    sound = str(value).encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in sound)


def number(data: Any, *keys: str) -> float | None:
    """The finite number under `keys`, as it is, or None."""
    value = get(data, *keys)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def amount(data: Any, *keys: str) -> float | None:
    """The number under `keys` if it is not negative, or None."""
    value = number(data, *keys)
    return None if value is None or value < 0 else value


def whole(data: Any, *keys: str) -> int | None:
    """The whole, not negative number under `keys`, or None."""
    value = amount(data, *keys)
    return None if value is None or value != int(value) else int(value)


@dataclass(frozen=True)
class Stage:
    """One stage as the report tells it; None where it tells nothing.

    `unreadable` names what the report holds but no such quantity can be: an accuracy of 91.
    """

    index: int
    name: str
    kind: str | None = None
    what: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    accuracy: float | None = None
    examples: int | None = None
    parameters: int | None = None
    nonzero_parameters: int | None = None
    macs: int | None = None
    bytes: int | None = None
    gzip_bytes: int | None = None
    median_ms: float | None = None
    p90_ms: float | None = None
    threads: int | None = None
    runs: int | None = None
    train_seconds: float | None = None
    epochs: int | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    history: dict[str, list[float | None]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % Wilson interval of the accuracy."""
        if self.accuracy is None or not self.examples:
            return None
        return intervals.wilson(self.accuracy, self.examples)


_COUNTS = ("examples", "parameters", "nonzero_parameters", "macs", "bytes", "gzip_bytes", "epochs")


def stages(report: Any) -> list[Stage]:
    """The stages of `report`, in its order.

    Example:
        >>> stages({"stages": [{"name": "teacher", "accuracy": 0.9}]})[0].accuracy
        0.9
    """
    return [_stage(i, entry) for i, entry in enumerate(rows(report, "stages"), start=1)]


def _stage(index: int, entry: Mapping[Any, Any]) -> Stage:
    accuracy = amount(entry, "accuracy")
    values: dict[str, Any] = {key: whole(entry, key) for key in _COUNTS}
    values["accuracy"] = accuracy if accuracy is not None and accuracy <= 1 else None
    values["train_seconds"] = amount(entry, "train_seconds")
    values["median_ms"] = amount(entry, "latency_ms", "median")
    values["p90_ms"] = amount(entry, "latency_ms", "p90")
    values["threads"] = whole(entry, "latency_ms", "threads")
    values["runs"] = whole(entry, "latency_ms", "runs")
    return Stage(
        index=index,
        name=text(entry, "name") or f"stage {index}",
        kind=text(entry, "kind"),
        what=text(entry, "what"),
        files=named_texts(entry, "files"),
        skipped=named_texts(entry, "skipped"),
        notes=texts(entry, "notes"),
        history=dict(_histories(mapping(entry, "history"))),
        unreadable=list(_unreadable(entry, values)),
        **values,
    )


def _histories(data: Mapping[Any, Any]) -> Iterator[tuple[str, list[float | None]]]:
    for key in data:
        values = [number({"value": value}, "value") for value in sequence(data, key)]
        if any(value is not None for value in values):
            yield clean(key), values


def _unreadable(entry: Mapping[Any, Any], values: Mapping[str, Any]) -> Iterator[str]:
    for key in (*_COUNTS, "accuracy", "train_seconds"):
        if values[key] is None and get(entry, key) is not None:
            expected = "a fraction in [0, 1]" if key == "accuracy" else "a number of at least 0"
            yield f"{key}: expected {expected}, found {clean(repr(get(entry, key)))[:60]}"
    for key in ("median", "p90"):
        value = get(entry, "latency_ms", key)
        if value is not None and amount(entry, "latency_ms", key) is None:
            yield f"latency {key}: expected milliseconds, found {clean(repr(value))[:60]}"


def format_shape(shape: Any) -> str | None:
    """A shape as `1 × 28 × 28 × 16`, an unknown size as `?`; None where there is none.

    Example:
        >>> format_shape([None, 28, 28, 16])
        '? × 28 × 28 × 16'
    """
    if not isinstance(shape, list | tuple):
        return _as_text(shape)
    return " × ".join(_as_text(size) or "?" for size in shape) or "scalar"


@dataclass(frozen=True)
class OpGroup:
    """Consecutive ops of the same kind and verdict."""

    first: str
    last: str
    count: int
    op: str
    mapped: bool | None
    certainty: str | None
    reason: str | None
    suggestion: str | None

    @property
    def numbers(self) -> str:
        """`3`, or `3–7` for several."""
        return self.first if self.count == 1 else f"{self.first}–{self.last}"


def group_ops(ops: list[Mapping[Any, Any]]) -> list[OpGroup]:
    """Joins neighbours that differ only in their index.

    Example:
        >>> ops = [{"index": i, "op": "CONV_2D", "mapped": True} for i in range(3)]
        >>> [(group.numbers, group.op, group.count) for group in group_ops(ops)]
        [('0–2', 'CONV_2D', 3)]
    """

    def key(item: tuple[int, Mapping[Any, Any]]) -> tuple[Any, ...]:
        op = item[1]
        mapped = op.get("mapped") if isinstance(op.get("mapped"), bool) else None
        reason = text(op, "reason")
        # The compiler's words for success repeat what `mapped` says.
        reason = None if mapped and reason == "Mapped to Edge TPU" else reason
        name = text(op, "op") or "–"
        return (name, mapped, text(op, "certainty"), reason, text(op, "suggestion"))

    groups = []
    for (op, mapped, certainty, reason, suggestion), items in itertools.groupby(
        enumerate(ops), key
    ):
        members = list(items)
        numbers = [text(entry, "index") or str(place) for place, entry in members]
        groups.append(
            OpGroup(
                numbers[0], numbers[-1], len(members), op, mapped, certainty, reason, suggestion
            )
        )
    return groups
