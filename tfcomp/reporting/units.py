"""Numbers for people: bytes, counts, milliseconds, fractions and ratios.

Sizes are binary throughout: 1 KiB is 1,024 bytes. What is missing is an en dash.
"""

from __future__ import annotations

import math

from tfcomp.profiling.render import bytes_text, scaled

MISSING = "–"
_SPACE = "\N{NO-BREAK SPACE}"


def format_bytes(count: float | None) -> str:
    """A size in bytes, KiB, MiB, GiB or TiB with three significant digits.

    Args:
        count: Bytes, or None where nothing was measured.

    Returns:
        The text, with a no-break space before the unit.

    Example:
        >>> [format_bytes(n).replace("\\xa0", " ") for n in (812, 21_840, 1_048_575, None)]
        ['812 bytes', '21.3 KiB', '1.00 MiB', '–']
    """
    if count is None:
        return MISSING
    return bytes_text(count).replace(" ", _SPACE)


def format_count(count: float | None) -> str:
    """A count: exact below a million, then in M, G or T with three significant digits.

    Example:
        >>> [format_count(n).replace("\\xa0", " ") for n in (273_066, 41_215_360)]
        ['273,066', '41.2 M']
    """
    if count is None:
        return MISSING
    return f"{count:,.0f}" if count < 1_000_000 else format_short_count(count)


def format_short_count(count: float | None) -> str:
    """A count with three significant digits and k, M, G or T, for narrow columns.

    Example:
        >>> [format_short_count(n).replace("\\xa0", " ") for n in (812, 273_066, 999_999)]
        ['812', '273 k', '1.00 M']
    """
    if count is None:
        return MISSING
    if count < 1000:
        return f"{count:,.0f}"
    value, unit = scaled(count, 1000.0, ("", "k", "M", "G", "T"))
    return f"{value}{_SPACE}{unit}"


def format_ms(value_ms: float | None) -> str:
    """Milliseconds with three significant digits, always in ms so that rows compare.

    Example:
        >>> [format_ms(v).replace("\\xa0", " ") for v in (0.04231, 1.2, 1234.5)]
        ['0.0423 ms', '1.20 ms', '1,234 ms']
    """
    return MISSING if value_ms is None else f"{bare_ms(value_ms)}{_SPACE}ms"


def bare_ms(value_ms: float | None) -> str:
    """As `format_ms`, without the unit, for a column that names it."""
    if value_ms is None:
        return MISSING
    if value_ms == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value_ms))))
    return f"{value_ms:,.{decimals}f}"


def format_seconds(seconds: float | None) -> str:
    """A duration as `4.2 s`, `42 s`, `1 min 4 s` or `2 h 5 min`.

    Example:
        >>> [format_seconds(s).replace("\\xa0", " ") for s in (4.21, 59.7, 64, 7500)]
        ['4.2 s', '1 min 0 s', '1 min 4 s', '2 h 5 min']
    """
    if seconds is None:
        return MISSING
    if round(seconds, 1) < 10:
        return f"{seconds:.1f}{_SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{_SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{_SPACE}min {whole % 60}{_SPACE}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,}{_SPACE}h {minutes % 60}{_SPACE}min"


def format_percent(fraction: float | None, examples: float | None = None) -> str:
    """A fraction as a percentage; two decimals where 5,000 examples or more carry them.

    Example:
        >>> format_percent(0.9104), format_percent(0.9104, examples=10_000)
        ('91.0%', '91.04%')
    """
    return MISSING if fraction is None else f"{100 * fraction:.{decimals_for(examples)}f}%"


def format_points(difference: float | None, examples: float | None = None) -> str:
    """A difference of two fractions in signed percentage points.

    Example:
        >>> format_points(-0.006), format_points(0.0), format_points(0.0123, 10_000)
        ('−0.6 points', '±0.0 points', '+1.23 points')
    """
    if difference is None:
        return MISSING
    size = f"{abs(100 * difference):.{decimals_for(examples)}f}"
    sign = "±" if float(size) == 0 else "−" if difference < 0 else "+"
    return f"{sign}{size} points"


def decimals_for(examples: float | None) -> int:
    """Decimals of a percentage that `examples` examples can carry."""
    return 2 if examples is not None and examples >= 5000 else 1


def format_ratio(ratio: float) -> str:
    """A ratio of at least one as `3.1×`.

    Example:
        >>> format_ratio(3.14), format_ratio(120.4)
        ('3.1×', '120×')
    """
    return f"{ratio:,.{0 if ratio >= 99.95 else 1}f}×"


def relative(value: float | None, base: float | None, less: str, more: str) -> str | None:
    """How `value` stands to `base`, in the words `less` and `more`.

    From a tenth upwards as a ratio, below as a percentage, so that nothing reads
    "1.0× smaller".

    Args:
        value: The quantity now.
        base: The quantity it is compared with.
        less: The word where `value` is below `base`, such as "smaller".
        more: The word where it is above, such as "larger".

    Returns:
        The text, or None where either is missing or zero.

    Example:
        >>> relative(25, 100, "smaller", "larger"), relative(103, 100, "smaller", "larger")
        ('4.0× smaller', '3% larger')
        >>> relative(5, 5, "smaller", "larger"), relative(None, 5, "smaller", "larger")
        ('same', None)
    """
    if not value or not base:
        return None
    if value == base:
        return "same"
    word = less if value < base else more
    ratio = max(value, base) / min(value, base)
    if ratio >= 1.1:
        return f"{format_ratio(ratio)} {word}"
    percent = 100 * abs(value - base) / base
    if percent < 0.05:
        return f"<0.1% {word}"
    return f"{percent:.{0 if percent >= 1 else 1}f}% {word}"
