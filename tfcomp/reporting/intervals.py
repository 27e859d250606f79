"""What a limited number of test images can tell: intervals of proportions."""

from __future__ import annotations

import math

# The 0.975 quantile of the standard normal distribution.
_Z_95 = 1.959963984540054


def wilson(fraction: float, examples: int, z: float = _Z_95) -> tuple[float, float]:
    """The Wilson score interval of a proportion, 95 % by default.

    centre = (p + z²/2n) / (1 + z²/n),
    half   = z / (1 + z²/n) · √(p(1 − p)/n + z²/4n²).

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    1927. Unlike p ± z·√(p(1 − p)/n) it stays in [0, 1] and has a width at p = 1.

    Args:
        fraction: The observed proportion p, in [0, 1].
        examples: The number n of examples, at least 1.
        z: Normal quantile of the level.

    Returns:
        The lower and the upper end, as fractions.

    Raises:
        ValueError: If `fraction` is outside [0, 1] or `examples` is below 1.

    Example:
        >>> low, high = wilson(0.91, 1000)
        >>> round(low, 4), round(high, 4)
        (0.8907, 0.9262)
    """
    if not 0 <= fraction <= 1 or examples < 1:
        raise ValueError(
            "Expected a fraction in [0, 1] of at least 1 example, "
            f"received fraction={fraction}, examples={examples}."
        )
    scale = 1 + z * z / examples
    centre = (fraction + z * z / (2 * examples)) / scale
    variance = fraction * (1 - fraction) / examples + z * z / (4 * examples * examples)
    half = z / scale * math.sqrt(variance)
    # At p = 0 and p = 1 the ends are exact; rounding must not push them past.
    low = 0.0 if fraction == 0 else max(0.0, centre - half)
    return low, 1.0 if fraction == 1 else min(1.0, centre + half)


def difference(
    after: float, before: float, after_examples: int, before_examples: int
) -> tuple[float, float]:
    """The 95 % interval of `after` − `before`, from the two Wilson intervals.

    lower = d − √((p₁ − l₁)² + (u₂ − p₂)²), upper = d + √((u₁ − p₁)² + (p₂ − l₂)²).

    R. G. Newcombe, "Interval estimation for the difference between independent proportions",
    1998, method 10. Two models seen on the *same* images usually differ by less than this
    says: it takes them as independent, because a report holds no answers per image.

    Args:
        after: Proportion now, in [0, 1].
        before: Proportion before, in [0, 1].
        after_examples: Examples behind `after`.
        before_examples: Examples behind `before`.

    Returns:
        The lower and the upper end of the difference, as fractions.

    Example:
        >>> low, high = difference(0.904, 0.91, 1000, 1000)
        >>> round(low, 4), round(high, 4)
        (-0.0316, 0.0196)
    """
    low_1, high_1 = wilson(after, after_examples)
    low_2, high_2 = wilson(before, before_examples)
    gap = after - before
    return (
        gap - math.hypot(after - low_1, high_2 - before),
        gap + math.hypot(high_1 - after, before - low_2),
    )
