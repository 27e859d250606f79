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


def bytes_text(nbytes: int) -> str:
    """Bytes in decimal units: 1 kB is 1,000 bytes.

    Example:
        >>> bytes_text(950), bytes_text(21840), bytes_text(3577952)
        ('950 B', '21.8 kB', '3.58 MB')
    """
    if nbytes < 1000:
        return f"{nbytes} B"
    value = float(nbytes)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5 or unit == "GB":
            break
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"


def shape_text(shape: Sequence[int | None]) -> str:
    """A shape in brackets, `?` for a dynamic dimension.

    Example:
        >>> shape_text((None, 8, 8, 3))
        '[?, 8, 8, 3]'
    """
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"
