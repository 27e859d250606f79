"""The report of a run as one self-contained HTML page."""

from __future__ import annotations

import calendar
import datetime
import importlib.resources
import itertools
import json
import os
import string
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import yaml

from tfcomp import files
from tfcomp.reporting import markup, plots, reading, summary, units
from tfcomp.reporting.reading import Stage


def write_html(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes `report` to `path` as one self-contained HTML file, whole or not at all.

    Args:
        report: The report, as in `report.json`.
        path: The file to write.

    Raises:
        TfcompError: If `report` is of another schema, or the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> page = pathlib.Path(tempfile.mkdtemp()) / "report.html"
        >>> write_html({"schema": 1, "title": "A run"}, page)
        >>> "<h1>A run</h1>" in page.read_text(encoding="utf-8")
        True
    """
    files.write_text(path, render_html(report))


def render_html(report: Mapping[str, Any]) -> str:
    """The page for `report`: the bottom line first, then every figure behind it.

    Any field may be missing or null: it is shown as an en dash, or its section is left out
    where nothing of it is there. The page loads nothing and runs no script; the same report
    gives the same text.

    Args:
        report: The report, as in `report.json`.

    Returns:
        The page, as text to be saved in UTF-8.

    Raises:
        TfcompError: If `report` is not a report of the schema that this version reads.

    Example:
        >>> render_html({"stages": [{"name": "<b>"}]}).count("<b>")
        0
    """
    reading.check_report(report)
    stages = reading.stages(report)
    title = reading.text(report, "title") or "Model compression run"
    version = reading.text(report, "versions", "tfcomp")
    sections = (
        _opening(report, stages),
        _stage_section(stages),
        _plot_section(report, stages),
        _curve_section(stages),
        _layer_section(report),
        _file_section(report),
        _edgetpu_section(report),
        _skipped_section(stages),
        _stage_files_section(stages),
        _recipe_section(report),
        _run_section(report),
    )
    by = f"tfcomp {version}" if version else "tfcomp"
    return _template("report.html").substitute(
        title=escape(title),
        generator=escape(by),
        css=_resource("report.css").strip(),
        meta=" · ".join(escape(part) for part in _meta(report)),
        body="\n".join(section for section in sections if section),
        footer=f"Written by {escape(by)}. The same figures, unrounded, are in "
        "<code>report.json</code> beside this file.",
    )


def _resource(name: str) -> str:
    return (importlib.resources.files("tfcomp.reporting") / name).read_text(encoding="utf-8")


def _template(name: str) -> string.Template:
    return string.Template(_resource(name))


def _meta(report: Mapping[str, Any]) -> Iterator[str]:
    created = reading.text(report, "created")
    if created:
        yield _date(created)
    data = reading.text(report, "data", "name")
    if data:
        yield data
    cpu = reading.text(report, "hardware", "cpu")
    if cpu:
        yield cpu
    if reading.text(report, "seed"):
        yield f"seed {reading.text(report, 'seed')}"


def _date(created: str) -> str:
    """`2025-11-03T14:20:00` as `3 November 2025, 14:20`; what is no date stays as it is."""
    try:
        moment = datetime.datetime.fromisoformat(created)
    except ValueError:
        return created
    day = f"{moment.day} {calendar.month_name[moment.month]} {moment.year}"
    zone = f" {moment.tzname()}" if moment.tzinfo else ""
    return f"{day}, {moment:%H:%M}{zone}"


# --- sections -------------------------------------------------------------------------------


def _opening(report: Mapping[str, Any], stages: list[Stage]) -> str:
    found = summary.summarise(report)
    parts = [f'<p class="bottom-line">{escape(found.sentence)}</p>']
    if found.figures:
        tiles = "\n".join(_figure_tile(figure) for figure in found.figures)
        parts.append(f'<dl class="figures">\n{tiles}\n</dl>')
    described = summary.describe_file(report)
    if described:
        parts.append(f'<p class="file-line"><span>The file</span>{escape(described)}.</p>')
    if found.caveats:
        items = "\n".join(f"<li>{escape(caveat)}</li>" for caveat in found.caveats)
        parts.append(
            '<aside class="care" aria-labelledby="care">\n<h2 id="care">Read with care</h2>\n'
            f"<ul>\n{items}\n</ul>\n</aside>"
        )
    inner = "\n".join(parts)
    return f'<section class="opening" aria-label="Bottom line">\n{inner}\n</section>'


def _figure_tile(figure: summary.Figure) -> str:
    mood = {True: " good", False: " bad", None: ""}[figure.good]
    return (
        f'<div><dt>{escape(figure.label)}</dt><dd class="value{mood}">{escape(figure.value)}</dd>'
        f'<dd class="detail">{escape(figure.detail)}</dd></div>'
    )


def _stage_section(stages: list[Stage]) -> str:
    if not stages:
        return ""
    columns = [
        ("Stage", False),
        ("Accuracy", True),
        ("Parameters", True),
        ("Non-zero", True),
        ("MACs", True),
        ("File", True),
        ("gzip", True),
        ("Latency", True),
        ("Training", True),
    ]
    body = [
        ("final" if stage is stages[-1] and len(stages) > 1 else "", _stage_cells(stage, stages[0]))
        for stage in stages
    ]
    lead = (
        f"Small print compares with the first stage, {escape(stages[0].name)}. Accuracy: 95% "
        "Wilson interval below. Latency: median, 90th percentile (p90) below. "
        "1 KiB = 1,024 bytes. Point at a figure for its exact value."
    )
    return markup.section("Stages", markup.table("Stages", columns, body, cards=True), lead=lead)


def _stage_cells(stage: Stage, first: Stage) -> list[markup.Cell]:
    base = None if stage is first else first
    return [
        _stage_name(stage),
        markup.Cell(_accuracy_html(stage, base), numeric=True),
        _count_cell(stage, base, "parameters", "parameters"),
        _nonzero_cell(stage),
        _count_cell(stage, base, "macs", "multiply-accumulates"),
        _size_cell(stage, base, "bytes"),
        _size_cell(stage, base, "gzip_bytes"),
        _latency_cell(stage, base),
        _training_cell(stage),
    ]


def _stage_name(stage: Stage) -> markup.Cell:
    kind = f" ({stage.kind})" if stage.kind and stage.kind != stage.name else ""
    head = f'<span class="number">{stage.index}</span>{escape(stage.name)}'
    lines = [stage.what or "", *stage.notes]
    subs = "".join(f'<span class="sub">{escape(line)}</span>' for line in lines if line)
    kind_html = f'<span class="number">{escape(kind)}</span>' if kind else ""
    return markup.Cell(f"{head}{kind_html}{subs}", header=True, extra="what")


def _accuracy_html(stage: Stage, base: Stage | None) -> str:
    if stage.accuracy is None:
        return markup.NONE
    exact = f"{stage.accuracy}"
    if stage.examples:
        exact += f" on {stage.examples:,} examples"
    shown = markup.exact(units.format_percent(stage.accuracy, stage.examples), exact)
    if stage.interval:
        low, high = (units.format_percent(end, stage.examples) for end in stage.interval)
        shown = markup.with_sub(shown, f"{low.removesuffix('%')}–{high}")
    if base is not None and base.accuracy is not None:
        gap = units.format_points(stage.accuracy - base.accuracy, stage.examples)
        shown = markup.with_sub(shown, gap)
    return shown


def _count_cell(stage: Stage, base: Stage | None, field: str, unit: str) -> markup.Cell:
    value: int | None = getattr(stage, field)
    exact = None if value is None else f"{value:,} {unit}"
    change = None if base is None else units.relative(value, getattr(base, field), "fewer", "more")
    return markup.Cell(
        markup.with_sub(markup.exact(units.format_count(value), exact), change), numeric=True
    )


def _nonzero_cell(stage: Stage) -> markup.Cell:
    value = stage.nonzero_parameters
    exact = None if value is None else f"{value:,} non-zero parameters"
    share = None
    if value is not None and stage.parameters:
        share = f"{100 * value / stage.parameters:.1f}% of them"
        share = "all of them" if value == stage.parameters else share
    return markup.Cell(
        markup.with_sub(markup.exact(units.format_count(value), exact), share), numeric=True
    )


def _size_cell(stage: Stage, base: Stage | None, field: str) -> markup.Cell:
    value: int | None = getattr(stage, field)
    exact = None if value is None else f"{value:,} bytes"
    change = (
        None if base is None else units.relative(value, getattr(base, field), "smaller", "larger")
    )
    return markup.Cell(
        markup.with_sub(markup.exact(units.format_bytes(value), exact), change), numeric=True
    )


def _latency_cell(stage: Stage, base: Stage | None) -> markup.Cell:
    exact = None if stage.median_ms is None else f"{stage.median_ms} ms, median"
    if exact and stage.runs:
        exact += f" of {stage.runs:,} runs"
    if exact and stage.threads:
        exact += f", {stage.threads} thread{'' if stage.threads == 1 else 's'}"
    shown = markup.exact(units.format_ms(stage.median_ms), exact)
    if stage.p90_ms is not None:
        p90 = f"p90 {units.format_ms(stage.p90_ms)}"
        shown += f'<span class="sub" title="{stage.p90_ms} ms">{escape(p90)}</span>'
    if base and summary.comparable_latency(base, stage):
        change = units.relative(stage.median_ms, base.median_ms, "faster", "slower")
        shown = markup.with_sub(shown, change)
    return markup.Cell(shown, numeric=True)


def _training_cell(stage: Stage) -> markup.Cell:
    exact = None if stage.train_seconds is None else f"{stage.train_seconds} s"
    shown = markup.exact(units.format_seconds(stage.train_seconds), exact)
    epochs = None
    if stage.epochs is not None:
        epochs = f"{stage.epochs:,} epoch{'' if stage.epochs == 1 else 's'}"
    return markup.Cell(markup.with_sub(shown, epochs), numeric=True)


def _plot_section(report: Mapping[str, Any], stages: list[Stage]) -> str:
    size = plots.accuracy_against(report, "bytes")
    time = plots.accuracy_against(report, "latency_ms")
    if not size and not time:
        return ""
    below = [
        f"{s.name} ({units.format_percent(s.accuracy, s.examples)})"
        for s in plots.out_of_view(stages)
    ]
    left_out = f" Far below and not drawn: {escape(', '.join(below))}." if below else ""
    missing = "No stage has both an accuracy and a {}, so there is nothing to draw."
    threads = {stage.threads for stage in stages if stage.threads is not None}
    runs = f", {_listed(sorted(threads))} thread{'' if threads == {1} else 's'}" if threads else ""
    return markup.section(
        "Accuracy against cost",
        '<div class="plots">',
        _figure("Against file size", "Raw bytes of the file.", size, missing.format("size")),
        _figure(
            "Against latency",
            f"Median on the CPU of this machine{runs}.",
            time,
            missing.format("measured latency"),
        ),
        "</div>",
        lead="The line follows the run. Hollow: another stage is no worse in either respect and "
        f"better in one. Filled: none is. Dotted: 95% interval of the accuracy.{left_out}",
    )


def _listed(numbers: list[int]) -> str:
    return " and ".join(str(n) for n in numbers)


def _figure(title: str, caption: str, svg: str, missing: str) -> str:
    inner = svg or f'<p class="note">{escape(missing)}</p>'
    words = escape(caption) if svg else ""
    return (
        f"<figure>\n<figcaption><strong>{escape(title)}</strong>{words}</figcaption>\n"
        f"{inner}\n</figure>"
    )


def _curve_section(stages: list[Stage]) -> str:
    drawn = [(stage, *plots.curves(stage)) for stage in stages]
    drawn = [(stage, metric, lines) for stage, metric, lines in drawn if lines]
    if not drawn:
        return ""
    figures = []
    for stage, metric, _ in drawn:
        svg = plots.training_curves(stage, _limits(metric, drawn))
        figures.append(_figure(stage.name, f"{metric.capitalize()} by epoch.", svg, ""))
    return markup.section(
        "Training",
        '<div class="curves">',
        *figures,
        "</div>",
        lead="One small plot for each stage that was trained, all on the same scale.",
    )


def _limits(
    metric: str, drawn: list[tuple[Stage, str, dict[str, list[float | None]]]]
) -> tuple[float, float]:
    """One scale for all curves of a metric."""
    values = [
        v
        for _, other, lines in drawn
        if other == metric
        for v in itertools.chain.from_iterable(lines.values())
        if v is not None
    ]
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.02
    return low - room, high + room


_LAYER_FIGURES = ("parameters", "nonzero_parameters", "macs", "bytes")


def _layer_section(report: Mapping[str, Any]) -> str:
    layers = reading.rows(report, "layers")
    if not layers:
        return ""
    columns = [
        ("Layer", False),
        ("Kind", False),
        ("Output shape", False),
        ("Parameters", True),
        ("Non-zero", True),
        ("MACs", True),
        ("Bytes", True),
    ]
    sums = {key: _sum(layers, key) for key in _LAYER_FIGURES}
    body = [("", _layer_cells(layer, sums)) for layer in layers]
    foot = [markup.Cell("Total", header=True), markup.Cell(""), markup.Cell("")]
    foot += [_layer_cell(key, sums[key], None) for key in _LAYER_FIGURES]
    return markup.section(
        "Layers of the final model",
        markup.table("Layers", columns, body, foot),
        lead="Bars show each layer's share of the total.",
    )


def _sum(layers: list[Mapping[Any, Any]], key: str) -> int | None:
    """The sum of a column, or None where a row lacks it: a partial sum is no total."""
    values = [reading.whole(layer, key) for layer in layers]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _layer_cells(layer: Mapping[Any, Any], sums: Mapping[str, int | None]) -> list[markup.Cell]:
    shape = reading.get(layer, "output_shape")
    return [
        markup.Cell(escape(reading.text(layer, "name") or units.MISSING), header=True),
        markup.Cell(markup.or_dash(reading.text(layer, "kind"))),
        markup.Cell(markup.or_dash(reading.format_shape(shape)), extra="keep"),
        *(_layer_cell(key, reading.whole(layer, key), sums[key]) for key in _LAYER_FIGURES),
    ]


def _layer_cell(key: str, value: int | None, total: int | None) -> markup.Cell:
    shown = units.format_bytes(value) if key == "bytes" else units.format_count(value)
    exact = None if value is None else f"{value:,} {key.replace('_', ' ')}"
    text = '<span class="none">0</span>' if value == 0 else markup.exact(shown, exact)
    if key in ("macs", "bytes") and value and total:
        share = 100 * value / total
        bar = f'<span class="bar" title="{share:.1f}%"><i style="width:{share:.1f}%"></i></span>'
        text = f'<span class="share">{text}{bar}</span>'
    elif key in ("macs", "bytes"):
        text = f'<span class="share">{text}<span class="gap"></span></span>'
    return markup.Cell(text, numeric=True)


def _file_section(report: Mapping[str, Any]) -> str:
    file = reading.mapping(report, "file")
    parity = reading.mapping(report, "parity")
    pairs = [*_file_facts(file), *_parity_facts(parity)]
    notes = reading.texts(report, "compatibility")
    pairs += [("Runs with", escape(note)) for note in notes[:1]]
    pairs += [("", escape(note)) for note in notes[1:]]
    if not pairs:
        return ""
    lead = "As read back from the file itself after conversion." if file else ""
    return markup.section("The final file", markup.facts(pairs), lead=lead)


def _file_facts(file: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    path = reading.text(file, "path")
    if path:
        yield "File", f"<code>{escape(path)}</code>"
    for term, key in (("Size", "nbytes"), ("After gzip", "gzip_bytes")):
        size = reading.whole(file, key)
        if size is not None:
            shown = units.format_bytes(size)
            yield term, escape(f"{shown} ({size:,} bytes)" if size >= 1024 else shown)
    for term, key in (("Input", "inputs"), ("Output", "outputs")):
        for row in reading.rows(file, key):
            name = reading.text(row, "name") or units.MISSING
            dtype = reading.text(row, "dtype") or units.MISSING
            shape = reading.format_shape(reading.get(row, "shape")) or units.MISSING
            yield term, f"<code>{escape(name)}</code> {escape(dtype)}, {escape(shape)}"
    counts = {op: reading.whole(file, "op_counts", op) for op in reading.mapping(file, "op_counts")}
    if counts:
        listed = sorted(counts.items(), key=lambda item: (-(item[1] or 0), str(item[0])))
        words = ", ".join(f"{reading.clean(op)} {units.format_count(n)}" for op, n in listed)
        yield "Ops", escape(words)
    if isinstance(file.get("float_ops"), list):
        names = reading.texts(file, "float_ops")
        yield "Float ops", escape(", ".join(names)) if names else "none"


def _parity_facts(parity: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    agreement = reading.amount(parity, "argmax_agreement")
    examples = reading.whole(parity, "examples")
    steps = reading.amount(parity, "max_steps")
    where = f" on {examples:,} images" if examples is not None else ""
    if agreement is not None:
        yield (
            "Same answer as Keras",
            markup.exact(f"{100 * agreement:.2f}% of the time{where}", f"{agreement}"),
        )
    if steps is not None:
        yield (
            "Largest difference",
            escape(f"{steps:g} quantisation step{'' if steps == 1 else 's'}"),
        )


def _edgetpu_section(report: Mapping[str, Any]) -> str:
    edgetpu = reading.mapping(report, "edgetpu")
    if not edgetpu:
        return ""
    groups = reading.group_ops(reading.rows(edgetpu, "ops"))
    table = ""
    if groups:
        columns = [
            ("Op", False),
            ("Number", False),
            ("Runs on", False),
            ("How sure", False),
            ("Reason", False),
            ("What would help", False),
        ]
        table = markup.table("Edge TPU ops", columns, [("", _op_cells(group)) for group in groups])
    notes = markup.bullets(escape(note) for note in reading.texts(edgetpu, "notes"))
    return markup.section("Edge TPU", table, notes, lead=_edgetpu_lead(edgetpu))


def _edgetpu_lead(edgetpu: Mapping[Any, Any]) -> str:
    mapped, total = reading.whole(edgetpu, "mapped"), reading.whole(edgetpu, "total")
    known = mapped is not None and total is not None
    counted = f"{mapped} of {total} ops" if known else "The ops below"
    if reading.get(edgetpu, "predicted") is False:
        words = [f"{counted} were mapped by edgetpu_compiler."]
    else:
        words = [
            f"{counted} are predicted to map, by rules drawn from compiled files and the "
            "vendor’s documentation; edgetpu_compiler was not run."
        ]
    refused = reading.text(edgetpu, "refused")
    if refused:
        words.append(f"The compiler would refuse the whole file: {refused}")
    baseline = reading.whole(edgetpu, "all_mapped_baseline")
    if baseline is not None:
        words.append(f"For scale: a prediction that simply maps everything says {baseline}.")
    words.append("Consecutive ops that are alike share a row.")
    return escape(" ".join(words))


def _op_cells(group: reading.OpGroup) -> list[markup.Cell]:
    times = f' <span class="number">× {group.count}</span>' if group.count > 1 else ""
    place = {True: "Edge TPU", False: "CPU", None: units.MISSING}[group.mapped]
    tag = {True: " yes", False: " no", None: ""}[group.mapped]
    return [
        markup.Cell(f"{escape(group.op)}{times}", header=True, extra="keep"),
        markup.Cell(escape(group.numbers)),
        markup.Cell(f'<span class="tag{tag}">{place}</span>'),
        markup.Cell(markup.or_dash(group.certainty)),
        markup.Cell("" if group.mapped and not group.reason else markup.or_dash(group.reason)),
        markup.Cell(
            "" if group.mapped and not group.suggestion else markup.or_dash(group.suggestion)
        ),
    ]


def _skipped_section(stages: list[Stage]) -> str:
    columns = [("Layer", False), ("Stage", False), ("Why it was left as it is", False)]
    body = [
        (
            "",
            [
                markup.Cell(escape(layer), header=True),
                markup.Cell(escape(stage.name)),
                markup.Cell(escape(reason)),
            ],
        )
        for stage in stages
        for layer, reason in stage.skipped.items()
    ]
    if not body:
        return ""
    lead = "What a stage could not treat, it left alone."
    return markup.section("Skipped", markup.table("Skipped layers", columns, body), lead=lead)


def _stage_files_section(stages: list[Stage]) -> str:
    pairs = [
        (stage.name, ", ".join(f"<code>{escape(name)}</code>" for name in stage.files.values()))
        for stage in stages
        if stage.files
    ]
    return markup.section("Files in the run’s folder", markup.facts(pairs)) if pairs else ""


def _recipe_section(report: Mapping[str, Any]) -> str:
    recipe = reading.mapping(report, "recipe")
    command = "<pre>tfcomp compress recipe.yaml --out DIR</pre>"
    version = reading.text(report, "versions", "tfcomp")
    with_version = f" with tfcomp {escape(version)}" if version else ""
    if not recipe:
        words = f"The recipe is not in this report. With it, run{with_version}:"
        return markup.section("How to reproduce this", f"<p>{words}</p>", command)
    shown = escape(_yaml(recipe))
    words = f"Save the recipe below as <code>recipe.yaml</code> and run{with_version}:"
    return markup.section(
        "How to reproduce this",
        f"<p>{words}</p>",
        command,
        f"<details>\n<summary>Recipe as run</summary>\n<pre>{shown}</pre>\n</details>",
        '<p class="note">The same seed on the same machine gives the same weights and the same '
        ".tflite file; timings vary.</p>",
    )


def _yaml(recipe: Mapping[Any, Any]) -> str:
    """The recipe as YAML, through JSON so that only plain values are left."""
    plain = json.loads(json.dumps(recipe, default=str, skipkeys=True))
    return reading.clean(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).strip())


def _run_section(report: Mapping[str, Any]) -> str:
    machine = markup.facts((term, escape(value)) for term, value in _machine(report))
    software = markup.facts((term, escape(value)) for term, value in _software(report))
    columns = [
        f"<div>\n<h3>{title}</h3>\n{facts}\n</div>"
        for title, facts in (("Data and machine", machine), ("Software", software))
        if facts
    ]
    if not columns:
        return ""
    return markup.section("Data, machine, versions", '<div class="columns">', *columns, "</div>")


def _machine(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for term, key in (("Data", "name"), ("Licence", "licence")):
        value = reading.text(report, "data", key)
        if value:
            yield term, value
    for term, key in (("Training examples", "train"), ("Test examples", "test")):
        count = reading.whole(report, "data", key)
        if count is not None:
            yield term, f"{count:,}"
    cpu = reading.text(report, "hardware", "cpu")
    if cpu:
        yield "Processor", cpu
    cores = reading.whole(report, "hardware", "cores")
    if cores is not None:
        yield "Cores", f"{cores}"
    memory = reading.whole(report, "hardware", "memory_bytes")
    if memory is not None:
        yield "Memory", units.format_bytes(memory)
    system = reading.text(report, "hardware", "system")
    if system:
        yield "System", system


def _software(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from reading.named_texts(report, "versions").items()
    seed = reading.text(report, "seed")
    if seed:
        yield "Seed", seed
