"""What a `.tflite` file really contains, read back from its flatbuffer.

Every fallback of the converter seen so far was silent: an op left in float, weights that were
not quantised, a batch that stayed dynamic. So nothing here trusts what was asked for; the file
is read, its bounds are checked, and what it holds is told op by op. No interpreter is started:
a damaged file cannot bring the process down.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import os
import pathlib
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tfcomp.conversion.compatibility import Compatibility, compatibility
from tfcomp.conversion.flatbuffer import read_contents, read_tflite
from tfcomp.conversion.ops import OpInfo, TensorInfo
from tfcomp.profiling.render import bytes_text, plain

__all__ = ["Audit", "OpInfo", "TensorInfo", "audit"]


@dataclasses.dataclass(frozen=True)
class Audit:
    """What a `.tflite` file contains; printed, it is a readable table.

    Attributes:
        path: The file.
        nbytes: Its size.
        gzip_bytes: Its size after gzip at level 9.
        inputs: The model's input tensors.
        outputs: The model's output tensors, in the file's order.
        ops: The ops of all subgraphs, those of the model first.
        signature_tensors: Indices of the border tensors of every subgraph that can be called
            from outside, as (subgraph, tensor).
        min_runtime: The runtime version that the converter wrote into the file, or None.
        description: The file's own description.
    """

    path: pathlib.Path
    nbytes: int
    gzip_bytes: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    ops: tuple[OpInfo, ...]
    signature_tensors: frozenset[tuple[int, int]] = frozenset()
    min_runtime: str | None = None
    description: str = ""

    @property
    def op_counts(self) -> dict[str, int]:
        """How many of each op, the most frequent first."""
        return dict(collections.Counter(op.op for op in self.ops).most_common())

    @property
    def float_ops(self) -> tuple[OpInfo, ...]:
        """Ops that compute in floating point.

        An op counts if any of its activations is float. Not counted are QUANTIZE from, and
        DEQUANTIZE to, a float input or output of the model itself: they are its border. Nor is
        SHAPE, which reads no element.
        """
        return tuple(
            op
            for op in self.ops
            if op.op != "SHAPE"
            and any(t.is_float for t in op.activations)
            and not self._is_border(op)
        )

    @property
    def hybrid_ops(self) -> tuple[OpInfo, ...]:
        """Float ops whose weights are stored as integers: what dynamic-range files are made of."""
        return tuple(
            op
            for op in self.float_ops
            if op.op not in ("DEQUANTIZE", "QUANTIZE")
            and any(t.quantized and not t.is_float for t in op.weights)
        )

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Bytes of stored constants by dtype, those that several tensors share counted once."""
        seen: dict[tuple[int, int], TensorInfo] = {}
        for op in self.ops:
            for tensor in op.weights:
                key = (-1, tensor.buffer) if tensor.buffer >= 0 else (op.subgraph, tensor.index)
                seen.setdefault(key, tensor)
        totals: collections.Counter[str] = collections.Counter()
        for tensor in seen.values():
            totals[tensor.dtype] += tensor.nbytes
        return dict(totals.most_common())

    @property
    def macs(self) -> int | None:
        """Multiply-adds of one inference with a batch of 1.

        None where any op's is unknown, or where a subgraph that is run an unknown number of
        times, such as the body of a loop, has some.
        """
        counts = [None if op.subgraph and op.macs else op.macs for op in self.ops]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def dynamic_batch(self) -> bool:
        """Whether the first dimension of some input is left open."""
        return any(t.shape and t.shape[0] is None for t in self.inputs)

    @property
    def compatibility(self) -> Compatibility:
        """Which runtimes are known to run the file, and which are known not to."""
        return compatibility([(op.op, op.version) for op in self.ops], self.min_runtime)

    def to_dict(self) -> dict[str, Any]:
        """The whole audit as plain JSON types."""
        return {
            "path": str(self.path),
            "nbytes": self.nbytes,
            "gzip_bytes": self.gzip_bytes,
            "macs": self.macs,
            "min_runtime": self.min_runtime,
            "compatibility": self.compatibility.to_dict(),
            "weight_bytes": self.weight_bytes,
            "op_counts": self.op_counts,
            "float_ops": [op.label for op in self.float_ops],
            "inputs": [t.to_dict() for t in self.inputs],
            "outputs": [t.to_dict() for t in self.outputs],
            "ops": [op.to_dict() for op in self.ops],
        }

    def __rich__(self) -> RenderableType:
        return Group(self._summary(), self._ops_table())

    def __str__(self) -> str:
        return plain(self)

    def _is_border(self, op: OpInfo) -> bool:
        if op.op not in ("QUANTIZE", "DEQUANTIZE"):
            return False
        border = self.signature_tensors or {
            (0, t.index) for t in (*self.inputs, *self.outputs) if t.index >= 0
        }
        floats = [t for t in op.activations if t.is_float]
        return all((op.subgraph, t.index) in border for t in floats)

    def _summary(self) -> Text:
        weights = ", ".join(f"{name} {bytes_text(n)}" for name, n in self.weight_bytes.items())
        float_ops = collections.Counter(op.op for op in self.float_ops)
        counted = ", ".join(f"{count} {name}" for name, count in float_ops.most_common())
        macs = "unknown" if self.macs is None else f"{self.macs:,}"
        lines = [
            f"{self.path.name}: {bytes_text(self.nbytes)}, {bytes_text(self.gzip_bytes)} gzip, "
            f"{len(self.ops)} ops, {macs} MACs",
            "inputs: " + ", ".join(f"{t.name} {t}" for t in self.inputs),
            "outputs: " + ", ".join(f"{t.name} {t}" for t in self.outputs),
            f"stored: {weights or 'no constants'}",
            f"float ops: {counted or 'none'}",
            f"runs on: {self.compatibility}",
        ]
        return Text("\n".join(lines))

    def _ops_table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("#", "op", "ver", "in", "weights", "out", "MACs"):
            right = column in ("#", "ver", "MACs")
            table.add_column(column, justify="right" if right else "left", no_wrap=column == "op")
        for op in self.ops:
            main = next((t for t in op.inputs if not t.constant), None)
            weight = max(op.weights, key=lambda t: t.nbytes, default=None)
            table.add_row(
                str(op.index) if not op.subgraph else f"{op.subgraph}.{op.index}",
                op.op,
                str(op.version),
                str(main) if main else "",
                str(weight) if weight else "",
                str(op.outputs[0]) if op.outputs else "",
                "?" if op.macs is None else f"{op.macs:,}" if op.macs else "",
            )
        return table


def audit(path: str | os.PathLike[str]) -> Audit:
    """Reads a `.tflite` file back: its ops, tensors, bytes and float islands.

    Args:
        path: The file.

    Returns:
        The audit. Ops of every subgraph are listed, the model's own first.

    Raises:
        TfcompError: If there is no such file or it cannot be read.
        DamagedFileError: If it is empty, truncated, damaged or not a TFLite file.

    Example:
        >>> import pathlib, tempfile
        >>> from tfcomp.errors import DamagedFileError
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "half.tflite"
        >>> _ = path.write_bytes(b"not a model")
        >>> try:
        ...     audit(path)
        ... except DamagedFileError as error:
        ...     print("expected a TFLite file" in str(error))
        True
    """
    file = pathlib.Path(path)
    data = read_tflite(file)
    return Audit(
        path=file,
        nbytes=len(data),
        gzip_bytes=len(gzip.compress(data, compresslevel=9, mtime=0)),
        **read_contents(file, data),
    )
