"""One line for every stage, live on a terminal, plain in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from rich.console import Console

from tfcomp.profiling.render import bytes_text


class Lines:
    """Prints what a run is doing.

    Args:
        count: Number of stages.
        stream: Where to print; None for nothing.
    """

    def __init__(self, count: int, stream: IO[str] | None) -> None:
        self._count = count
        self._console = Console(file=stream, quiet=stream is None, highlight=False)
        self._result = ""

    @contextlib.contextmanager
    def stage(self, index: int, name: str, kind: str) -> Iterator[Callable[[float, str], None]]:
        """Shows the stage while it runs; yields a function that takes (share done, text)."""
        head = f"{self._head(index)} [bold]{name}[/bold] ({kind})"
        start = time.perf_counter()
        self._result = ""
        if not self._console.is_terminal:
            self._console.print(f"{head} …")
        with self._console.status(head) as status:

            def tell(share: float, text: str) -> None:
                status.update(f"{head}  {share:4.0%}  {text}")

            yield tell
        seconds = time.perf_counter() - start
        self._console.print(f"{head}{self._result}  {seconds:.0f} s")

    def done(self, record: dict[str, Any]) -> None:
        """Notes the result, which the stage's line ends with."""
        self._result = _result(record)

    def kept(self, index: int, name: str, record: dict[str, Any]) -> None:
        """Tells that a stage was finished by an earlier run."""
        self._console.print(
            f"{self._head(index)} [bold]{name}[/bold]{_result(record)}  kept from before"
        )

    def _head(self, index: int) -> str:
        total = self._count + 1
        return rf"\[{index + 1}/{total}]"


def _result(record: dict[str, Any]) -> str:
    return (
        f"  accuracy {record['accuracy']:.3f}, {record['parameters']:,} parameters, "
        f"{bytes_text(record['bytes'])}"
    )
