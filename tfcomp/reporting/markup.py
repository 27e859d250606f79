"""Pieces of HTML that the report is built of: sections, tables, cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from tfcomp.reporting import units

NONE = '<span class="none" title="not recorded">–</span>'


@dataclass(frozen=True)
class Cell:
    """A cell: shown text (escaped already), and how it is set."""

    html: str
    numeric: bool = False
    header: bool = False
    extra: str = ""


def section(title: str, *parts: str, lead: str = "") -> str:
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower())
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    inner = "\n".join(part for part in (intro, *parts) if part)
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{title}</h2>\n{inner}\n</section>'


def exact(shown: str, exact: str | None) -> str:
    """The rounded figure, with the exact one on hover; a dash where there is none."""
    if exact is None or shown == units.MISSING:
        return NONE
    return f'<span title="{escape(exact)}">{escape(shown)}</span>'


def with_sub(main: str, sub: str | None) -> str:
    return f'{main}<span class="sub">{escape(sub)}</span>' if sub else main


def table(
    label: str,
    columns: list[tuple[str, bool]],
    body: Iterable[tuple[str, list[Cell]]],
    foot: list[Cell] | None = None,
    cards: bool = False,
) -> str:
    """A table that scrolls by itself where it is wider than the screen.

    Args:
        label: What a screen reader announces.
        columns: Heading and whether the column is of numbers.
        body: Class of the row and its cells; the first cell is the row's header.
        foot: Cells of the row of totals.
        cards: Whether a narrow screen shows each row as a card.
    """
    # A table that a style sheet turns into blocks loses its meaning unless the roles say it.
    roles = cards
    head = "".join(
        f'<th scope="col"{role(roles, "columnheader")}{css_class(numeric)}>{escape(name)}</th>'
        for name, numeric in columns
    )
    lines = [row(columns, kind, cells, roles) for kind, cells in body]
    tail = f"<tfoot>\n{row(columns, '', foot, roles)}\n</tfoot>\n" if foot else ""
    group = role(roles, "rowgroup")
    style = ' class="cards" role="table"' if cards else ""
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">\n'
        f"<table{style}>\n"
        f"<thead{group}>\n<tr{role(roles, 'row')}>{head}</tr>\n</thead>\n"
        f"<tbody{group}>\n" + "\n".join(lines) + f"\n</tbody>\n{tail}</table>\n</div>"
    )


def role(wanted: bool, role: str) -> str:
    return f' role="{role}"' if wanted else ""


def css_class(numeric: bool, extra: str = "") -> str:
    names = " ".join(name for name in ("n" if numeric else "", extra) if name)
    return f' class="{names}"' if names else ""


def row(columns: list[tuple[str, bool]], kind: str, cells: list[Cell], roles: bool) -> str:
    parts = []
    for (name, _), cell in zip(columns, cells, strict=True):
        style = css_class(cell.numeric, cell.extra)
        if cell.header:
            parts.append(f'<th scope="row"{role(roles, "rowheader")}{style}>{cell.html}</th>')
        else:
            label = f' data-label="{escape(name)}"' if roles else ""
            body = f"<span>{cell.html}</span>" if roles else cell.html
            parts.append(f"<td{role(roles, 'cell')}{label}{style}>{body}</td>")
    row_class = f' class="{kind}"' if kind else ""
    return f"<tr{row_class}{role(roles, 'row')}>{''.join(parts)}</tr>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of terms and values; the values are HTML already."""
    inner = "\n".join(f"<dt>{escape(term)}</dt><dd>{value}</dd>" for term, value in pairs)
    return f'<dl class="facts">\n{inner}\n</dl>' if inner else ""


def bullets(items: Iterable[str]) -> str:
    inner = "\n".join(f"<li>{item}</li>" for item in items)
    return f'<ul class="plain">\n{inner}\n</ul>' if inner else ""


def or_dash(value: str | None) -> str:
    return NONE if value is None else escape(value)
