"""The real `edgetpu_compiler`, where it is installed, beside what was predicted of it."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tfcomp.conversion.edgetpu import COMPILER, EdgeTpuReport, OpMapping, analyse, rules
from tfcomp.errors import ConversionError, TfcompError
from tfcomp.files import write_bytes
from tfcomp.profiling.render import plain


@dataclasses.dataclass(frozen=True)
class CompiledOps:
    """One line of the compiler's op table: so many ops of a name with one status."""

    op: str
    count: int
    status: str

    @property
    def mapped(self) -> bool:
        """Whether they run on the Edge TPU."""
        return self.status == rules()["reasons"]["mapped"]


@dataclasses.dataclass(frozen=True)
class CompilerLog:
    """What the compiler printed.

    Attributes:
        version: Its version, `"16.0.384591198"`.
        ops: Its op table.
        sizes: Bytes by what they are of, in the compiler's words.
    """

    version: str
    ops: tuple[CompiledOps, ...]
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """How many ops by name and status."""
        totals: collections.Counter[tuple[str, str]] = collections.Counter()
        for row in self.ops:
            totals[row.op, row.status] += row.count
        return dict(totals)


@dataclasses.dataclass(frozen=True)
class Compilation:
    """A file that the real compiler made, beside what was predicted of it.

    Attributes:
        path: The compiled file.
        log: What the compiler printed.
        prediction: What `analyse` said before.
    """

    path: pathlib.Path
    log: CompilerLog
    prediction: EdgeTpuReport

    @property
    def disagreements(self) -> tuple[str, ...]:
        """Ops of which compiler and prediction map different numbers; empty if they agree."""
        return _differences(_mapped(self.log.ops), _predicted(self.prediction.ops))

    @property
    def baseline_disagreements(self) -> tuple[str, ...]:
        """The same had every op been predicted to be mapped."""
        every = [dataclasses.replace(op, mapped=True) for op in self.prediction.ops]
        return _differences(_mapped(self.log.ops), _predicted(every))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {
            "predicted": False,
            "path": str(self.path),
            "version": self.log.version,
            "mapped": sum(row.count for row in self.log.ops if row.mapped),
            "total": sum(row.count for row in self.log.ops),
            "sizes": dict(self.log.sizes),
            "ops": [dataclasses.asdict(row) for row in self.log.ops],
            "disagreements": list(self.disagreements),
            "baseline_disagreements": list(self.baseline_disagreements),
            "prediction": self.prediction.to_dict(),
        }

    def __rich__(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("op", no_wrap=True)
        table.add_column("compiled", justify="right")
        table.add_column("predicted", justify="right")
        table.add_column("status")
        compiled, predicted = self.log.counts, self.prediction.counts
        for op, status in sorted({*compiled, *predicted}):
            counts = compiled.get((op, status), 0), predicted.get((op, status), 0)
            table.add_row(op, str(counts[0]), str(counts[1]), status)
        mapped = sum(row.count for row in self.log.ops if row.mapped)
        total = sum(row.count for row in self.log.ops)
        title = f"Edge TPU ({COMPILER} {self.log.version}): {mapped} of {total} ops mapped"
        verdict = "; ".join(self.disagreements) or "none"
        baseline = "; ".join(self.baseline_disagreements) or "none"
        return Group(
            Text(title),
            table,
            Text(f"disagreements with the prediction: {verdict}"),
            Text(f"of an all-mapped guess: {baseline}"),
        )

    def __str__(self) -> str:
        return plain(self)


def compile_edgetpu(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    timeout_seconds: float = 600.0,
) -> Compilation:
    """Compiles a file with the real `edgetpu_compiler` and compares it with the prediction.

    Args:
        path: A `.tflite` file.
        out: The file to write; `<name>_edgetpu.tflite` beside `path` by default.
        timeout_seconds: When to give the compiler up.

    Returns:
        The compiled file, the compiler's op table, and where the prediction differs from it.

    Raises:
        TfcompError: If the compiler is not on PATH.
        ConversionError: If it refuses the file, with its own words.
    """
    compiler = shutil.which(COMPILER)
    if compiler is None:
        raise TfcompError(
            f"{COMPILER} is not on PATH; install it from coral.ai/docs/edgetpu/compiler. "
            "tfcomp.conversion.edgetpu.analyse predicts what it would map."
        )
    file = pathlib.Path(path)
    prediction = analyse(file)
    target = pathlib.Path(out) if out else file.with_name(f"{file.stem}_edgetpu.tflite")
    with tempfile.TemporaryDirectory() as folder:
        text = _call([compiler, "-s", "-o", folder, str(file)], timeout_seconds)
        made = pathlib.Path(folder) / f"{file.stem}_edgetpu.tflite"
        log = parse_log(text)
        if not made.exists() or not log.ops:
            raise ConversionError(f"{COMPILER} did not compile {file}: {_complaint(text)}")
        write_bytes(target, made.read_bytes())
    return Compilation(target, log, prediction)


def parse_log(text: str) -> CompilerLog:
    """Reads what `edgetpu_compiler -s` prints.

    Args:
        text: The printed text; everything that is not its op table, its version or its sizes
            is passed over.

    Returns:
        The log, without ops if there was no table.

    Example:
        >>> log = parse_log('''Edge TPU Compiler version 16.0.384591198
        ... Input size: 1.50KiB
        ... Operator                       Count      Status
        ...
        ... CONV_2D                        2          Mapped to Edge TPU
        ... ARG_MAX                        1          Operation not supported
        ... ''')
        >>> log.sizes["Input size"], [(row.op, row.count, row.mapped) for row in log.ops]
        (1536, [('CONV_2D', 2, True), ('ARG_MAX', 1, False)])
    """
    version = re.search(r"Edge TPU Compiler version (\S+)", text)
    sizes = {
        name.strip(): round(float(number) * _UNITS[unit])
        for name, number, unit in re.findall(
            r"^([A-Z][^:\n]*):\s*([\d.]+)\s?(B|KiB|MiB|GiB)\s*$", text, re.MULTILINE
        )
    }
    table = re.split(r"^Operator\s+Count\s+Status\s*$", text, maxsplit=1, flags=re.MULTILINE)
    rows = re.findall(r"^(\S+)[ \t]+(\d+)[ \t]+(\S.*?)\s*$", table[-1], re.MULTILINE)
    ops = tuple(CompiledOps(op, int(count), status) for op, count, status in rows)
    return CompilerLog(
        version=version.group(1) if version else "unknown",
        ops=ops if len(table) > 1 else (),
        sizes=sizes,
    )


_UNITS = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


def _call(command: list[str], timeout_seconds: float) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConversionError(
            f"{COMPILER} did not finish within {timeout_seconds:g} seconds. "
            "Give it a longer `timeout_seconds` or a smaller model."
        ) from error
    except OSError as error:
        raise TfcompError(f"Cannot run {command[0]}: {error.strerror or error}.") from error
    return f"{done.stdout}\n{done.stderr}"


def _complaint(text: str) -> str:
    """The most telling line of a failed run."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for pattern in (r"ERROR: Didn't find op", r"Compilation failed:", r"ERROR:", r"rror|ailed"):
        for line in lines:
            if re.search(pattern, line):
                return line
    return lines[-1] if lines else "it printed nothing"


def _mapped(rows: Iterable[CompiledOps]) -> dict[str, tuple[int, int]]:
    """Mapped ops and all ops by name."""
    totals: dict[str, tuple[int, int]] = {}
    for row in rows:
        mapped, count = totals.get(row.op, (0, 0))
        totals[row.op] = (mapped + row.count * row.mapped, count + row.count)
    return totals


def _predicted(ops: Iterable[OpMapping]) -> dict[str, tuple[int, int]]:
    totals: dict[str, tuple[int, int]] = {}
    for op in ops:
        # The compiler lists custom ops by their own name.
        name = op.op.removeprefix("CUSTOM:")
        mapped, count = totals.get(name, (0, 0))
        totals[name] = (mapped + op.mapped, count + 1)
    return totals


def _differences(
    compiled: Mapping[str, tuple[int, int]], predicted: Mapping[str, tuple[int, int]]
) -> tuple[str, ...]:
    return tuple(
        f"{op}: compiled {compiled.get(op, (0, 0))[0]} of {compiled.get(op, (0, 0))[1]} mapped, "
        f"predicted {predicted.get(op, (0, 0))[0]} of {predicted.get(op, (0, 0))[1]}"
        for op in sorted({*compiled, *predicted})
        if compiled.get(op) != predicted.get(op)
    )
