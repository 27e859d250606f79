"""Tables for the terminal, which say what the HTML report says, more briefly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tfcomp.reporting import reading, units
from tfcomp.runtime import Latency


def stage_table(report: Mapping[str, Any]) -> Table:
    """One row for each stage; fits 80 columns.

    Accuracy is in per cent, latency the median and 90th percentile in milliseconds,
    `nz` the share of parameters that are not zero.

    Args:
        report: The report, as in `report.json`.

    Returns:
        The table, to be printed by a `rich.console.Console`.

    Raises:
        TfcompError: If `report` is not a report of the schema that this version reads.

    Example:
        >>> stage_table({"stages": [{"name": "teacher"}]}).row_count
        1
    """
    reading.check_report(report)
    table = _table("Stages", ["Stage"], ["Acc.", "Params", "nz", "MACs", "File", "gzip"])
    table.add_column("Median/p90 ms", justify="right", min_width=6)
    for stage in reading.stages(report):
        nonzero = units.MISSING
        if stage.parameters and stage.nonzero_parameters is not None:
            # Cut, not rounded: "100%" must mean all of them.
            share = math.floor(1000 * stage.nonzero_parameters / stage.parameters) / 10
            nonzero = f"{share:g}%"
        latency = units.bare_ms(stage.median_ms)
        if stage.p90_ms is not None:
            latency += f" / {units.bare_ms(stage.p90_ms)}"
        table.add_row(
            Text(stage.name),
            units.format_percent(stage.accuracy, stage.examples),
            _narrow(units.format_short_count(stage.parameters)),
            nonzero,
            _narrow(units.format_short_count(stage.macs)),
            _narrow(units.format_bytes(stage.bytes)),
            _narrow(units.format_bytes(stage.gzip_bytes)),
            latency,
        )
    return table


def layer_table(report: Mapping[str, Any]) -> Table:
    """One row for each layer of the final model.

    Args:
        report: The report, as in `report.json`.

    Returns:
        The table, to be printed by a `rich.console.Console`.

    Raises:
        TfcompError: If `report` is not a report of the schema that this version reads.

    Example:
        >>> layer_table({"layers": [{"name": "conv", "macs": 1000}]}).row_count
        1
    """
    reading.check_report(report)
    table = _table("Layers", ["Layer", "Kind", "Output"], ["Params", "Non-zero", "MACs", "Bytes"])
    for layer in reading.rows(report, "layers"):
        shape = reading.format_shape(reading.get(layer, "output_shape")) or units.MISSING
        counts = (reading.whole(layer, key) for key in ("parameters", "nonzero_parameters", "macs"))
        table.add_row(
            Text(reading.text(layer, "name") or units.MISSING),
            Text(reading.text(layer, "kind") or units.MISSING),
            Text(shape.replace(" ", "")),
            *(_narrow(units.format_short_count(count)) for count in counts),
            _narrow(units.format_bytes(reading.whole(layer, "bytes"))),
        )
    return table


def edgetpu_table(report: Mapping[str, Any]) -> Table:
    """One row for each run of like ops: where it runs, how sure, why, what would help.

    Args:
        report: The report, as in `report.json`.

    Returns:
        The table, to be printed by a `rich.console.Console`.

    Raises:
        TfcompError: If `report` is not a report of the schema that this version reads.

    Example:
        >>> ops = [{"index": 0, "op": "CONV_2D", "mapped": True}]
        >>> edgetpu_table({"edgetpu": {"ops": ops}}).row_count
        1
    """
    reading.check_report(report)
    predicted = reading.get(report, "edgetpu", "predicted") is not False
    title = "Edge TPU, predicted" if predicted else "Edge TPU, as compiled"
    mapped = reading.whole(report, "edgetpu", "mapped")
    total = reading.whole(report, "edgetpu", "total")
    if mapped is not None and total is not None:
        title += f": {mapped} of {total} ops map"
    table = _table(title, ["Op", "No.", "On", "Sure", "Reason", "What would help"], [])
    for group in reading.group_ops(reading.rows(report, "edgetpu", "ops")):
        times = f" × {group.count}" if group.count > 1 else ""
        place = {True: "TPU", False: "CPU", None: units.MISSING}[group.mapped]
        empty = "" if group.mapped else units.MISSING
        table.add_row(
            Text(f"{group.op}{times}"),
            Text(group.numbers),
            place,
            Text(group.certainty or units.MISSING),
            Text(group.reason or empty),
            Text(group.suggestion or empty),
        )
    return table


def _table(title: str, texts: list[str], numbers: list[str]) -> Table:
    table = Table(
        title=Text(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _narrow(text: str) -> str:
    """For a narrow column: `B` for bytes, and a plain space, which every terminal font has."""
    return text.replace("\N{NO-BREAK SPACE}", " ").replace(" bytes", " B").replace(" byte", " B")


def latency_table(measured: Sequence[Latency]) -> Table:
    """One row for each file that was measured.

    Args:
        measured: From `tfcomp.runtime.latencies`.

    Returns:
        The table, to be printed by a `rich.console.Console`.

    Example:
        >>> latency_table([]).row_count
        0
    """
    title = "Latency on this machine, files measured in turn"
    table = _table(title, ["File"], ["Median ms", "p90 ms", "Threads", "Runs"])
    for one in measured:
        table.add_row(
            Text(one.path.name),
            units.bare_ms(one.median_ms),
            units.bare_ms(one.p90_ms),
            str(one.threads),
            str(one.runs),
        )
    return table
