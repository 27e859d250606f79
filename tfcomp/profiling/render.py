"""Rich tables as plain text, and numbers as people read them."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console, RenderableType


def plain(renderable: RenderableType, width: int = 120) -> str:
    """What `renderable` looks like on a terminal of `width` columns, without colours.

    Example:
        >>> plain("[bold]small[/bold]")
        'small'
    """
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, highlight=False).print(renderable)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def bytes_text(nbytes: float) -> str:
    """A size in bytes, KiB, MiB, GiB or TiB with three significant digits; 1 KiB is 1,024 bytes.

    Example:
        >>> bytes_text(812), bytes_text(21840), bytes_text(1_048_575)
        ('812 bytes', '21.3 KiB', '1.00 MiB')
    """
    if nbytes < 1024:
        return f"{nbytes:,.0f} {'byte' if nbytes == 1 else 'bytes'}"
    value, unit = scaled(nbytes, 1024.0, ("bytes", "KiB", "MiB", "GiB", "TiB"))
    return f"{value} {unit}"


def scaled(count: float, step: float, units: tuple[str, ...]) -> tuple[str, str]:
    """Three significant digits and the unit; never `1,024 KiB`, since the rounded number counts.

    Example:
        >>> scaled(41_215_360, 1000, ("", "k", "M"))
        ('41.2', 'M')
    """
    value = float(count)
    for unit in units[:-1]:
        if round(value, _decimals(value)) < step:
            return f"{value:,.{_decimals(value)}f}", unit
        value /= step
    return f"{value:,.{_decimals(value)}f}", units[-1]


def _decimals(value: float) -> int:
    return 2 if value < 9.995 else 1 if value < 99.95 else 0


def shape_text(shape: Sequence[int | None]) -> str:
    """A shape in brackets, `?` for a dynamic dimension.

    Example:
        >>> shape_text((None, 8, 8, 3))
        '[?, 8, 8, 3]'
    """
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"
