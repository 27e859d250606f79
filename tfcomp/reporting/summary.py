"""The bottom line of a run: one sentence, a few figures, and what to read with care."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tfcomp.reporting import intervals, reading, units
from tfcomp.reporting.reading import Stage

# Repeated latency runs on a shared machine differ by some per cent; less is not a difference.
_LATENCY_NOISE = 1.05
_SAME_SIZE = "the same size"
_SAME_SPEED = "about as fast"
# Below this agreement the file is not the model that was trained.
_AGREEMENT = 0.995


@dataclass(frozen=True)
class Figure:
    """One big figure: a label, the figure, and a line of what it is made of."""

    label: str
    value: str
    detail: str
    good: bool | None = None


@dataclass(frozen=True)
class Summary:
    """What a reader who stops after ten seconds should take away."""

    sentence: str
    figures: list[Figure]
    caveats: list[str]


def summarise(report: Mapping[str, Any]) -> Summary:
    """The bottom line of `report`, from its first stage to its last.

    Args:
        report: The report, as in `report.json`.

    Returns:
        The sentence, the figures and the caveats; nothing in them is invented for a field
        that is missing.

    Example:
        >>> stages = [{"name": "teacher", "bytes": 4000}, {"name": "int8", "bytes": 1000}]
        >>> summarise({"stages": stages}).sentence
        'The final file, int8, is 4.0× smaller than teacher; accuracy was not measured.'
    """
    stages = reading.stages(report)
    return Summary(
        sentence=_sentence(stages),
        figures=list(_figures(report, stages)),
        caveats=list(_caveats(report, stages)),
    )


def _sentence(stages: list[Stage]) -> str:
    if not stages:
        return "No stage has been recorded."
    first, last = stages[0], stages[-1]
    if len(stages) == 1:
        scored = units.format_percent(last.accuracy, last.examples)
        known = f"its accuracy is {scored}" if last.accuracy is not None else "without an accuracy"
        return f"One stage, {last.name}: {known}. There is nothing to compare it with."
    noun = "file" if last.bytes is not None else "model"
    changes = [text for text in (_size_change(first, last), _speed_change(first, last)) if text]
    accuracy = _accuracy_change(first, last)
    if not changes:
        return f"From {first.name} to {last.name}: {accuracy}; size and speed were not measured."
    joined = " and ".join(changes)
    # "as" where the last word before the comparison asks for it: the same size as, as fast as.
    than = "as" if changes[-1] in (_SAME_SIZE, _SAME_SPEED) else "than"
    return f"The final {noun}, {last.name}, is {joined} {than} {first.name}; {accuracy}."


def _size_change(first: Stage, last: Stage) -> str | None:
    change = units.relative(last.bytes, first.bytes, "smaller", "larger")
    return _SAME_SIZE if change == "same" else change


def _speed_change(first: Stage, last: Stage) -> str | None:
    if not comparable_latency(first, last):
        return None
    speed_up = speed(first, last)
    if speed_up is None:
        return None
    if 1 / _LATENCY_NOISE <= speed_up <= _LATENCY_NOISE:
        return _SAME_SPEED
    return units.relative(last.median_ms, first.median_ms, "faster", "slower")


def _accuracy_change(first: Stage, last: Stage) -> str:
    if first.accuracy is None or last.accuracy is None:
        return "accuracy was not measured" + (" for both" if _any_accuracy(first, last) else "")
    gap = last.accuracy - first.accuracy
    if gap == 0:
        return "its accuracy is the same"
    size = units.format_points(abs(gap), last.examples).lstrip("+±")
    text = f"its accuracy is {size} {'higher' if gap > 0 else 'lower'}"
    reach = gap_interval(first, last)
    if reach and reach[0] <= 0 <= reach[1]:
        text += f", which is within the uncertainty of {last.examples:,} test images"
    return text


def _any_accuracy(first: Stage, last: Stage) -> bool:
    return first.accuracy is not None or last.accuracy is not None


def speed(first: Stage, last: Stage) -> float | None:
    """How many times faster `last` is: ratio of the medians."""
    if not first.median_ms or not last.median_ms:
        return None
    return first.median_ms / last.median_ms


def comparable_latency(first: Stage, last: Stage) -> bool:
    """Whether both latencies were taken with the same number of threads, as far as is known."""
    return first.threads is None or last.threads is None or first.threads == last.threads


def gap_interval(first: Stage, last: Stage) -> tuple[float, float] | None:
    """The 95 % interval of the change in accuracy, or None where it cannot be known."""
    if first.accuracy is None or last.accuracy is None:
        return None
    if not first.examples or not last.examples:
        return None
    return intervals.difference(last.accuracy, first.accuracy, last.examples, first.examples)


def _figures(report: Mapping[str, Any], stages: list[Stage]) -> Iterator[Figure]:
    if not stages:
        return
    first, last = stages[0], stages[-1]
    yield _accuracy_figure(first, last)
    yield _size_figure("File size", first, last, first.bytes, last.bytes)
    yield _size_figure("After gzip", first, last, first.gzip_bytes, last.gzip_bytes)
    yield _latency_figure(first, last)


def _accuracy_figure(first: Stage, last: Stage) -> Figure:
    value = units.format_percent(last.accuracy, last.examples)
    if last.accuracy is None:
        return Figure("Accuracy", value, "not measured")
    if first is last or first.accuracy is None:
        return Figure("Accuracy", value, f"{first.name}: not measured" if first != last else "")
    gap = last.accuracy - first.accuracy
    detail = (
        f"{units.format_points(gap, last.examples)}; {first.name} "
        f"{units.format_percent(first.accuracy, first.examples)}"
    )
    reach = gap_interval(first, last)
    resolved = reach is not None and not reach[0] <= 0 <= reach[1]
    return Figure("Accuracy", value, detail, gap > 0 if resolved else None)


def _size_figure(
    label: str, first: Stage, last: Stage, before: int | None, after: int | None
) -> Figure:
    if first is last:
        return Figure(label, units.format_bytes(after), "" if after else "not measured")
    change = units.relative(after, before, "smaller", "larger")
    if change is None or before is None or after is None:
        known = after if after is not None else before
        whose = last.name if after is not None else first.name
        detail = f"only {whose} was measured" if known is not None else "not measured"
        return Figure(label, units.format_bytes(after), detail)
    path = f"{units.format_bytes(before)} → {units.format_bytes(after)}"
    return Figure(label, change, path, None if after == before else after < before)


def _latency_figure(first: Stage, last: Stage) -> Figure:
    label = "Latency, median"
    speed_up = speed(first, last)
    if first is last or speed_up is None or not comparable_latency(first, last):
        detail = "" if last.median_ms is not None else "not measured on this machine"
        return Figure(label, units.format_ms(last.median_ms), detail)
    path = f"{units.format_ms(first.median_ms)} → {units.format_ms(last.median_ms)}"
    if 1 / _LATENCY_NOISE <= speed_up <= _LATENCY_NOISE:
        return Figure(label, "no change", path)
    change = units.relative(last.median_ms, first.median_ms, "faster", "slower") or units.MISSING
    return Figure(label, change, path, speed_up > 1)


def describe_file(report: Mapping[str, Any]) -> str | None:
    """What the final file is, such as `int8, 0 float ops, 14 of 14 ops predicted to map…`."""
    return ", ".join([*_file_parts(report), *_edgetpu_parts(report)]) or None


def _file_parts(report: Mapping[str, Any]) -> Iterator[str]:
    file = reading.mapping(report, "file")
    inputs = _dtypes(file, "inputs")
    dtype = reading.text(file, "dtype")
    if dtype or inputs:
        yield dtype or f"{inputs} in"
    outputs = _dtypes(file, "outputs")
    if dtype and inputs and outputs and {inputs, outputs} != {dtype}:
        yield f"{inputs} in and {outputs} out" if inputs != outputs else f"{inputs} in and out"
    elif not dtype and outputs:
        yield f"{outputs} out"
    if isinstance(file.get("float_ops"), list):
        count = len(file["float_ops"])
        yield f"{count} float {'op' if count == 1 else 'ops'}"


def _dtypes(file: Mapping[Any, Any], key: str) -> str:
    found = dict.fromkeys(reading.text(row, "dtype") or "?" for row in reading.rows(file, key))
    return " and ".join(found)


def _edgetpu_parts(report: Mapping[str, Any]) -> Iterator[str]:
    mapped = reading.whole(report, "edgetpu", "mapped")
    total = reading.whole(report, "edgetpu", "total")
    if mapped is None or total is None:
        return
    predicted = reading.get(report, "edgetpu", "predicted")
    if reading.text(report, "edgetpu", "refused"):
        yield "predicted to be refused by the Edge TPU compiler"
    elif predicted is False:
        yield f"{mapped} of {total} ops mapped to the Edge TPU by its compiler"
    else:
        yield f"{mapped} of {total} ops predicted to map to the Edge TPU"


def _caveats(report: Mapping[str, Any], stages: list[Stage]) -> Iterator[str]:
    if stages:
        first, last = stages[0], stages[-1]
        yield from _accuracy_caveats(report, stages)
        if first is not last:
            yield from _size_caveats(first, last)
        yield from _latency_caveats(report, first, last)
    yield from _file_caveats(report)
    for stage in stages:
        for problem in stage.unreadable:
            yield f"{stage.name}: {problem}; left out."


def _accuracy_caveats(report: Mapping[str, Any], stages: list[Stage]) -> Iterator[str]:
    first, last = stages[0], stages[-1]
    if last.accuracy is not None and last.interval and last.examples:
        low, high = last.interval
        half = units.format_points((high - low) / 2, last.examples).lstrip("+±")
        yield (
            f"Accuracy was counted on {last.examples:,} images, which leaves about ±{half} on "
            f"each figure (95% Wilson interval; {last.name}: {_span(low, high, last.examples)})."
        )
    elif last.accuracy is not None:
        yield "The number of test images is not recorded, so the accuracy has no interval."
    reach = gap_interval(first, last) if first is not last else None
    if reach and last.examples:
        low_gap, high_gap = (units.format_points(end, last.examples) for end in reach)
        yield (
            f"The change in accuracy, {first.name} to {last.name}, lies between "
            f"{low_gap.removesuffix(' points')} and {high_gap} (95%, taking the two as "
            "independent; on the same images the true range is usually narrower)."
        )
    if first.examples and last.examples and first.examples != last.examples:
        yield (
            f"{first.name} was scored on {first.examples:,} images and {last.name} on "
            f"{last.examples:,}: compare the two with care."
        )
    if reading.get(report, "seed") is not None and len(stages) > 1:
        yield "This is one run with one seed; another seed would give somewhat other accuracies."


def _span(low: float, high: float, examples: int | None) -> str:
    start = units.format_percent(low, examples).removesuffix("%")
    return f"{start} to {units.format_percent(high, examples)}"


def _size_caveats(first: Stage, last: Stage) -> Iterator[str]:
    if first.bytes and last.bytes and last.bytes >= first.bytes:
        yield f"The file did not shrink: {first.bytes:,} bytes before, {last.bytes:,} after."
    if last.parameters and last.nonzero_parameters is not None:
        zeros = 1 - last.nonzero_parameters / last.parameters
        if zeros >= 0.1:
            yield (
                f"{100 * zeros:.0f}% of the final weights are zero. Zeros help the gzip size "
                "only: neither the raw file nor the latency gains from them."
            )


def _latency_caveats(report: Mapping[str, Any], first: Stage, last: Stage) -> Iterator[str]:
    if first.median_ms is None and last.median_ms is None:
        yield "Latency was not measured in this run, so the report says nothing about speed."
        return
    cpu = reading.text(report, "hardware", "cpu")
    where = f"on the CPU of this machine ({cpu})" if cpu else "on the CPU of the machine that ran"
    yield f"Latency was measured {where}; a phone or an Edge TPU will differ."
    if first is last:
        return
    speed_up = speed(first, last)
    if speed_up is None:
        missing = first.name if first.median_ms is None else last.name
        yield f"{missing} has no measured latency, so no speed-up can be given."
    elif not comparable_latency(first, last):
        yield (
            f"Latencies of {first.name} ({_threads(first)}) and {last.name} ({_threads(last)}) "
            "were taken with different numbers of threads: no speed-up is given."
        )
    elif speed_up < 1 / _LATENCY_NOISE:
        yield (
            f"Latency got worse: {last.name} takes {units.format_ms(last.median_ms)} where "
            f"{first.name} takes {units.format_ms(first.median_ms)}."
        )
    elif speed_up <= _LATENCY_NOISE:
        yield "Latency did not improve by more than repeated measurements differ (5%)."


def _threads(stage: Stage) -> str:
    return f"{stage.threads} thread{'' if stage.threads == 1 else 's'}"


def _file_caveats(report: Mapping[str, Any]) -> Iterator[str]:
    float_ops = reading.texts(report, "file", "float_ops")
    if float_ops:
        some = ", ".join(dict.fromkeys(float_ops))
        yield f"The final file still computes in float in {len(float_ops)} of its ops: {some}."
    agreement = reading.amount(report, "parity", "argmax_agreement")
    if agreement is not None and agreement < _AGREEMENT:
        yield (
            f"The file and the Keras model agree on only {100 * agreement:.1f}% of the answers; "
            f"{100 * _AGREEMENT:.1f}% or more is expected."
        )
    yield from _edgetpu_caveats(report)


def _edgetpu_caveats(report: Mapping[str, Any]) -> Iterator[str]:
    refused = reading.text(report, "edgetpu", "refused")
    if refused:
        yield f"The Edge TPU compiler would refuse the whole file: {refused}"
    mapped = reading.whole(report, "edgetpu", "mapped")
    total = reading.whole(report, "edgetpu", "total")
    if mapped is None or total is None:
        return
    if reading.get(report, "edgetpu", "predicted") is not False:
        yield "The Edge TPU mapping is predicted from rules; its compiler was not run."
    if mapped < total and not refused:
        rest = total - mapped
        yield f"{rest} of {total} ops would stay on the CPU beside an Edge TPU; see the op table."
