"""What the Edge TPU compiler would map of a file, predicted op by op.

The compiler is closed and runs where Coral installs it. Elsewhere its answer is predicted, and
the report says so. What is known of it stands in `edgetpu_rules.yaml`; this module only
interprets that table and follows the dependencies between ops; `edgetpu_compiler.py` asks the
real one.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib.resources
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tfcomp.conversion.audit import Audit, OpInfo, audit
from tfcomp.conversion.edgetpu_conditions import CONDITIONS, sizes
from tfcomp.profiling.render import bytes_text, plain

COMPILER = "edgetpu_compiler"


@dataclasses.dataclass(frozen=True)
class OpMapping:
    """What becomes of one op.

    Attributes:
        index: Its position in the file.
        op: Its name.
        mapped: Whether it runs on the Edge TPU.
        reason: Why (not), in the compiler's own words.
        certainty: `"proven"` on compiled files, `"documented"` by the vendor, or `"uncertain"`.
        suggestion: The change to the Keras model that would map it, or empty.
        subgraph: The subgraph that it is in.
    """

    index: int
    op: str
    mapped: bool
    reason: str
    certainty: str
    suggestion: str = ""
    subgraph: int = 0


@dataclasses.dataclass(frozen=True)
class EdgeTpuReport:
    """A prediction of what the Edge TPU compiler maps; printed, it is a readable table.

    Attributes:
        path: The file, None for ops that were not read from one.
        ops: One entry per op.
        refused: Why the compiler would refuse the whole file, or None.
        notes: What else to know: streamed parameters, uncertain ops.
    """

    path: pathlib.Path | None
    ops: tuple[OpMapping, ...]
    refused: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def mapped(self) -> tuple[OpMapping, ...]:
        """Ops that run on the Edge TPU."""
        return tuple(op for op in self.ops if op.mapped)

    @property
    def unmapped(self) -> tuple[OpMapping, ...]:
        """Ops that stay on the CPU."""
        return tuple(op for op in self.ops if not op.mapped)

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """How many ops by name and reason, as the compiler's own table counts them."""
        return dict(collections.Counter((op.op, op.reason) for op in self.ops))

    def to_dict(self) -> dict[str, Any]:
        """The whole report as plain JSON types."""
        return {
            "predicted": True,
            "path": str(self.path) if self.path else None,
            "mapped": len(self.mapped),
            "total": len(self.ops),
            "all_mapped_baseline": len(self.ops),
            "refused": self.refused,
            "notes": list(self.notes),
            "ops": [dataclasses.asdict(op) for op in self.ops],
        }

    def __rich__(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("op", no_wrap=True)
        table.add_column("count", justify="right")
        table.add_column("status")
        table.add_column("how sure")
        table.add_column("change to the Keras model")
        rows: collections.Counter[tuple[str, str, str, str]] = collections.Counter(
            (op.op, op.reason, op.certainty, op.suggestion)
            for op in sorted(self.ops, key=lambda op: op.mapped)
        )
        for (name, reason, certainty, suggestion), count in rows.items():
            table.add_row(name, str(count), reason, certainty, suggestion)
        title = (
            f"Edge TPU (predicted, {COMPILER} not run): {len(self.mapped)} of {len(self.ops)} "
            f"ops mapped; all-mapped baseline {len(self.ops)} of {len(self.ops)}"
        )
        lines = [Text(f"refused: {self.refused}")] if self.refused else []
        return Group(Text(title), *lines, table, *(Text(note) for note in self.notes))

    def __str__(self) -> str:
        return plain(self)


def analyse(source: Audit | str | os.PathLike[str]) -> EdgeTpuReport:
    """Predicts, op by op, what the Edge TPU compiler would map.

    An op is mapped if its dtypes, shapes, version and options meet the rules, and if it is in
    the one dependency subset that the compiler keeps.

    Args:
        source: A `.tflite` file, or its audit.

    Returns:
        The prediction.

    Raises:
        TfcompError: If there is no such file.
        DamagedFileError: If it is damaged or not a TFLite file.
    """
    found = source if isinstance(source, Audit) else audit(source)
    report = analyse_ops(found.ops)
    cache_bytes, overhead = rules()["cache_bytes"], rules()["cache_overhead"]
    stored = sum(found.weight_bytes.values())
    notes = report.notes
    if stored * overhead > cache_bytes:
        notes += (
            f"Parameters of {bytes_text(stored)} may not fit the on-chip cache of about "
            f"{bytes_text(cache_bytes)}: what does not fit is streamed at every run.",
        )
    return dataclasses.replace(report, path=found.path, notes=notes)


def analyse_ops(ops: Sequence[OpInfo]) -> EdgeTpuReport:
    """The same for ops alone, in the order of execution."""
    verdicts = [_judge(op) for op in ops]
    result = _keep_one_subset(ops, verdicts)
    refused = next(filter(None, map(_refusal, ops)), None)
    if refused is not None:
        result = [
            _no(op, "version", rules()["refused"]) if mapping.mapped else mapping
            for op, mapping in zip(ops, result, strict=True)
        ]
    unsure = sorted({mapping.op for mapping in result if mapping.certainty == "uncertain"})
    notes = (f"Uncertain, check with {COMPILER}: {', '.join(unsure)}.",) if unsure else ()
    return EdgeTpuReport(None, tuple(result), refused, notes)


def partition(ops: Sequence[OpInfo], supported: Sequence[bool]) -> list[tuple[bool, set[int]]]:
    """Divides ops into subsets that alternate between supported and not, by dependency.

    The first op that is left decides the kind of the next subset, which takes every op of that
    kind whose inputs come from earlier subsets or from itself. This is how a delegate's ops are
    grouped by the runtime, whatever stands between them in the file.

    Args:
        ops: The ops of one subgraph in the order of execution.
        supported: For each, whether the Edge TPU can run it.

    Returns:
        The subsets in order, each with its kind and the positions of its ops in `ops`.
    """
    needs = _dependencies(ops)
    placed: set[int] = set()
    subsets: list[tuple[bool, set[int]]] = []
    while len(placed) < len(ops):
        left = [index for index in range(len(ops)) if index not in placed]
        kind = supported[left[0]]
        subset: set[int] = set()
        for index in left:
            if supported[index] == kind and needs[index] <= placed:
                subset.add(index)
                placed.add(index)
        subsets.append((kind, subset))
    return subsets


@functools.cache
def rules() -> dict[str, Any]:
    """The table of what is known of the compiler, `edgetpu_rules.yaml`."""
    file = importlib.resources.files("tfcomp.conversion").joinpath("edgetpu_rules.yaml")
    table: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return table


def _dependencies(ops: Sequence[OpInfo]) -> list[set[int]]:
    """For each op, the earlier ops that make one of its inputs."""
    producer: dict[int, int] = {}
    needs = []
    for index, op in enumerate(ops):
        needs.append({producer[t.index] for t in op.inputs if t.index in producer})
        producer.update({t.index: index for t in op.outputs if t.index >= 0})
    return needs


def _keep_one_subset(ops: Sequence[OpInfo], verdicts: Sequence[OpMapping]) -> list[OpMapping]:
    """Leaves mapped only what is in the first subset of ops that the Edge TPU can run."""
    main = [index for index, op in enumerate(ops) if op.subgraph == 0]
    model = [ops[index] for index in main]
    supported = [verdicts[index].mapped for index in main]
    tpu = [subset for kind, subset in partition(model, supported) if kind]
    if not tpu:
        return list(verdicts)
    certainty = rules()["partition"]["certainty"]
    if any(len(subset) > len(tpu[0]) for subset in tpu[1:]):
        # Pairs show that one subset is kept, but not that the first would be if it is small.
        certainty = "uncertain"
    blocking = _blocking(_dependencies(model), supported)
    result = list(verdicts)
    for position, index in enumerate(main):
        if supported[position] and position not in tpu[0]:
            names = sorted({model[other].op for other in blocking[position]})
            suggest = f"It waits for {', '.join(names)}." if names else ""
            result[index] = _no(
                ops[index], "subgraph", {"certainty": certainty, "suggest": suggest}
            )
    return result


def _blocking(needs: Sequence[set[int]], supported: Sequence[bool]) -> list[set[int]]:
    """For each op, the unsupported ones that it depends on, near or far."""
    blocking: list[set[int]] = []
    for before in needs:
        own = {index for index in before if not supported[index]}
        blocking.append(own.union(*(blocking[index] for index in before)))
    return blocking


def _refusal(op: OpInfo) -> str | None:
    limit = rules()["refused"]["versions"].get(op.op)
    if limit is None or op.version < limit:
        return None
    return f"Didn't find op for builtin opcode '{op.op}' version '{op.version}'"


def _no(op: OpInfo, reason: str, rule: Mapping[str, Any]) -> OpMapping:
    text = rules()["reasons"][reason]
    return OpMapping(
        op.index, op.op, False, text, rule["certainty"], rule.get("suggest", ""), op.subgraph
    )


def _judge(op: OpInfo) -> OpMapping:
    """One op by itself, without regard to its neighbours."""
    table = rules()
    name = "CUSTOM" if op.op.startswith("CUSTOM:") else op.op
    if op.subgraph:
        return _no(op, "subgraph", {"certainty": "uncertain"})
    if name == "QUANTIZE" and any(t.is_float for t in op.inputs):
        return _no(op, "limitation", table["float_quantize"])
    wrong = _wrong_dtype(op, name)
    if wrong is not None:
        suggest = table["dtypes"]["suggest"]
        suggest = suggest.get(wrong, suggest["other"])
        rule = {"suggest": suggest, **table["unsupported"].get(name, {})}
        return _no(op, "dtype", {**rule, "certainty": table["dtypes"]["certainty"]})
    if any(None in t.shape for t in (*op.inputs, *op.outputs)):
        return _no(op, "dynamic", table["dynamic"])
    if name not in table["ops"]:
        return _no(op, "unsupported", table["unsupported"].get(name, table["not_listed"]))
    if any(math.prod(sizes(t)[:-3]) > 1 for t in op.activations):
        return _no(op, "rank", table["rank"])
    return _judge_conditions(op, table["ops"][name])


def _judge_conditions(op: OpInfo, rule: Mapping[str, Any]) -> OpMapping:
    certainty, suggestion = rule["certainty"], ""
    if not op.inputs or not op.outputs:
        return _no(op, "limitation", {"certainty": "uncertain"})
    for condition in rule.get("conditions", ()):
        if CONDITIONS[condition["check"]](op, condition):
            continue
        if condition.get("verdict") != "mapped":
            return _no(op, "limitation", condition)
        certainty, suggestion = condition["certainty"], condition["suggest"]
    if op.version > max(rule.get("versions", [op.version])):
        certainty = "uncertain"
    mapped = rules()["reasons"]["mapped"]
    return OpMapping(op.index, op.op, True, mapped, certainty, suggestion, op.subgraph)


def _wrong_dtype(op: OpInfo, name: str) -> str | None:
    """The first dtype among the op's tensors that the Edge TPU does not take."""
    rule = rules()["dtypes"]
    extra = rule["extra"].get(name, [])
    for tensor in (*op.inputs, *op.outputs):
        taken = rule["constants"] if tensor.constant else rule["activations"]
        if tensor.dtype not in (*taken, *extra):
            return tensor.dtype
    return None
