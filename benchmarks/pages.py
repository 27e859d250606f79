"""Pages of docs/ that benchmarks write into."""

from __future__ import annotations

import pathlib
import re

from tfcomp.files import write_text

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def put(path: pathlib.Path, marker: str, text: str) -> None:
    """Replaces what stands between the comments of that name; adds them where there are none."""
    title = f"# {path.stem.capitalize()}\n"
    page = path.read_text(encoding="utf-8") if path.exists() else title
    block = f"<!-- {marker} -->\n{text}\n<!-- /{marker} -->"
    pattern = f"<!-- {marker} -->.*<!-- /{marker} -->"
    if re.search(pattern, page, flags=re.DOTALL):
        page = re.sub(pattern, lambda _: block, page, flags=re.DOTALL)
    else:
        page = f"{page.rstrip()}\n\n{block}\n"
    write_text(path, page)
