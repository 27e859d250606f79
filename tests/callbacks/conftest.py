"""What tests of several callbacks run in."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import keras
import pytest


@pytest.fixture
def strict() -> Iterator[None]:
    """The same weights in each run, and warnings that are errors."""
    keras.utils.set_random_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*ran out of data", UserWarning)
        yield


@pytest.fixture
def short_groups(strict: None) -> None:
    """Groups of N:M that are short at the end of an axis are no error."""
    warnings.filterwarnings("ignore", ".*may be short", UserWarning)
