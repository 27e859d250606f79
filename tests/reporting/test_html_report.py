"""The page: well formed, whole, exact, safe, and the same each time."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfcomp.errors import TfcompError
from tfcomp.reporting import render_html, units, write_html

_VOID = {"meta", "br", "hr", "img", "input", "link"}


class _Page(HTMLParser):
    """Checks the balance of the tags and gathers what a test looks at."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"attribute twice in <{tag}>: {names}"
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def attributes(self, name: str) -> list[str]:
        return [str(attrs[name]) for _, attrs in self.tags if name in attrs]


def test_is_well_formed_and_accessible(report: dict[str, Any]) -> None:
    page = _Page(render_html(report))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert all(label in ids for label in page.attributes("aria-labelledby"))
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(drawings) == 2 + 4  # two plots, and four stages with a history
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawings)
    html_tag = next(attrs for tag, attrs in page.tags if tag == "html")
    assert html_tag["lang"] == "en-GB"
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1


def test_references_in_drawings_are_resolved(report: dict[str, Any]) -> None:
    page = _Page(render_html(report))
    ids = set(page.attributes("id"))
    targets = [link.removeprefix("#") for link in page.attributes("xlink:href")]
    targets += re.findall(r"url\(#([^)]+)\)", " ".join(page.attributes("clip-path")))
    assert targets
    assert set(targets) <= ids


def test_loads_and_runs_nothing(report: dict[str, Any]) -> None:
    text = render_html(report)
    page = _Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert page.attributes("src") == []
    assert page.attributes("href") == []
    assert all(link.startswith("#") for link in page.attributes("xlink:href"))
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\s\"'<>]+", text)) == names


def test_has_every_figure_of_every_stage_exactly(report: dict[str, Any]) -> None:
    page = _Page(render_html(report))
    titles = page.attributes("title")
    for stage in report["stages"]:
        assert f"{stage['accuracy']} on 1,000 examples" in titles
        assert f"{stage['parameters']:,} parameters" in titles
        assert f"{stage['nonzero_parameters']:,} non-zero parameters" in titles
        assert f"{stage['macs']:,} multiply-accumulates" in titles
        assert f"{stage['bytes']:,} bytes" in titles
        assert f"{stage['gzip_bytes']:,} bytes" in titles
        for shown in (units.format_bytes(stage["bytes"]), units.format_bytes(stage["gzip_bytes"])):
            assert shown in page.texts
        if stage["latency_ms"]:
            latency = stage["latency_ms"]
            assert f"{latency['median']} ms, median of 200 runs, 1 thread" in titles
            assert f"{latency['p90']} ms" in titles
        if stage["train_seconds"]:
            assert f"{stage['train_seconds']} s" in titles
        for words in (stage["name"], stage["what"], *stage["files"].values(), *stage["notes"]):
            assert words in page.texts
        for layer, reason in stage["skipped"].items():
            assert layer in page.texts
            assert reason in page.texts


def test_has_what_stands_behind_the_figures(report: dict[str, Any]) -> None:
    text = _Page(render_html(report)).text
    expected = [
        report["title"], "3 November 2025, 14:20 UTC", "tfcomp compress recipe.yaml --out DIR",
        "temperature: 4.0", "3.15.1", "Example CPU @ 2.50 GHz", "7.76 GiB", "6,000", "MIT",
        "99.80% of the time on 1,000 images", "2 quantisation steps", "HARD_SWISH",
        "Operation not supported", "Use ReLU6 instead.", "everything says 14",
        "139,472 bytes", "block3_conv_b", report["compatibility"][0],
    ]  # fmt: skip
    plain = text.replace("\N{NO-BREAK SPACE}", " ")
    assert [words for words in expected if words not in plain] == []
    total = sum(layer["parameters"] for layer in report["layers"])
    assert f"{total:,}" in plain


def test_says_what_else_the_edge_tpu_analysis_found(report: dict[str, Any]) -> None:
    report["edgetpu"].update(refused="Too new an op.", notes=["3 MB are streamed."])
    text = _Page(render_html(report)).text
    assert text.count("refuse the whole file: Too new an op.") == 2  # the caveat and the section
    assert "3 MB are streamed." in text


def test_is_deterministic_and_leaves_the_report_alone(report: dict[str, Any]) -> None:
    before = copy.deepcopy(report)
    assert render_html(report) == render_html(json.loads(json.dumps(report)))
    assert report == before


_HOSTILE = '<script>alert("1")</script>&amp;$title ${css} $x$ %s --> \x00\x1b[31m\ud800 é'


def _poison(value: Any) -> Any:
    """Every text of the report, keys of free mappings included, made hostile."""
    if isinstance(value, dict):
        free = value.keys() & {"CONV_2D", "logits", "keras"}
        return {(_HOSTILE + k if free else k): _poison(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_poison(item) for item in value]
    return value + _HOSTILE if isinstance(value, str) else value


def test_escapes_everything(report: dict[str, Any], tmp_path: Path) -> None:
    text = render_html(_poison(report))
    page = _Page(text)
    assert "<script" not in text
    assert "script" not in {tag for tag, _ in page.tags}
    assert "\x00" not in text
    assert "\x1b" not in text
    assert 'alert("1")' in page.text
    write_html(_poison(report), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every field, however deep."""
    items: Any = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    found = [path] if path else []
    for key, child in items:
        found += _paths(child, (*path, key))
    return found


_JUNK = st.sampled_from([None, [], {}, "", "text", -1, 0, 1e30, float("nan"), float("inf"), True,
                         [None], [1, "a"], {"a": None}])  # fmt: skip


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_missing_and_odd_fields_are_survived(report: dict[str, Any], data: st.DataObject) -> None:
    damaged = copy.deepcopy(report)
    paths = [path for path in _paths(damaged) if path != ("schema",)]
    for path in data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=12)):
        parent: Any = damaged
        try:
            for key in path[:-1]:
                parent = parent[key]
            if isinstance(parent, dict) and data.draw(st.booleans()):
                parent.pop(path[-1], None)
            else:
                parent[path[-1]] = data.draw(_JUNK)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier damage took it away
    text = render_html(damaged)
    _Page(text)
    assert not re.search(r">(None|nan|inf)<", text)


@pytest.mark.parametrize("key", ["stages", "layers", "file", "edgetpu", "recipe", "hardware"])
def test_whole_sections_may_be_missing(report: dict[str, Any], key: str) -> None:
    del report[key]
    _Page(render_html(report))


def test_an_empty_report_is_a_page() -> None:
    assert "No stage has been recorded." in _Page(render_html({})).text


def test_missing_figures_are_dashes(report: dict[str, Any]) -> None:
    for stage in report["stages"]:
        stage.update(bytes=None, gzip_bytes=None, latency_ms=None, train_seconds=None)
    page = _Page(render_html(report))
    assert page.texts.count("–") >= 4 * len(report["stages"])
    assert "No stage has both" not in page.text  # neither plot is there, so neither is its excuse
    report["stages"][0]["bytes"] = 10
    assert "No stage has both an accuracy and a measured latency" in _Page(render_html(report)).text


def test_a_partial_sum_is_no_total(report: dict[str, Any]) -> None:
    report["layers"][0]["macs"] = None
    page = render_html(report)
    foot = page[page.index("<tfoot>") : page.index("</tfoot>")]
    assert foot.count("–") == 1


@pytest.mark.parametrize("bad", [{"schema": 2}, [], None, "report"])
def test_refuses_what_it_cannot_read(bad: Any) -> None:
    with pytest.raises(TfcompError, match=r"^Expected a report .*received") as error:
        render_html(bad)
    assert "\n" not in str(error.value)


def test_a_failed_write_leaves_the_old_page(report: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(TfcompError):
        write_html({"schema": 99}, target)
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]
