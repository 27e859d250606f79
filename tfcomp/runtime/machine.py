"""What machine and which versions a figure was measured with."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
from typing import Any

from tfcomp.version import __version__

PACKAGES = ("keras", "tensorflow", "ai-edge-litert", "numpy")


def versions() -> dict[str, str]:
    """Versions of everything that a figure depends on, by name."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"tfcomp": __version__, **found, "python": platform.python_version()}


def hardware() -> dict[str, Any]:
    """Processor, usable cores, memory in bytes and system of this machine."""
    return {
        "cpu": _cpu_name(),
        "cores": _usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
    }


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
