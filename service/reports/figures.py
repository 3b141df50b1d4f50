"""Numbers for people: how many digits, which interval to show, which tick marks."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""
MOST_TICKS = 6


def figure(value: float | None) -> str:
    """Three decimals below ten, fewer above; a power of ten where three decimals would show nothing."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if size != 0 and (size < 5e-4 or size >= 1e6):
        return f"{value:.1e}"
    if value.is_integer() and size >= 10:
        return f"{value:,.0f}"
    return f"{value:.3f}" if size < 10 else f"{value:,.1f}"


def percent(value: float) -> str:
    """A fraction in per cent."""
    return f"{100 * value:.1f} %"


def seconds(value: float) -> str:
    """A time as people say it."""
    if value >= 120:
        return f"{value / 60:.1f} min"
    return f"{value:.1f} s" if value >= 0.05 else "under 0.1 s"


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Two-sided 95 % interval of a rate. For display: gates are held to exact bounds.

    Raises:
        ValueError: no trials, or more hits than trials.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"expected hits among at least one trial, got {hits} of {n}")
    share, spread = hits / n, Z95 * Z95 / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def span(values: Sequence[float]) -> tuple[float, float]:
    """Where an axis begins and ends: 0 to 1 for what looks like rates, else round numbers around the values and zero.

    A constant is given some room, so the axis is never of no length.
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low >= 0 and 0.4 < high <= 1:
        return 0.0, 1.0
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-12:
        return low, low + 1.0
    step = _step(low, high)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, at most some six."""
    step = _step(low, high)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float, low: float, high: float) -> str:
    """A tick with just the digits that tell it from its neighbours."""
    step = _step(low, high)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{digits}f}" if digits <= 4 else f"{value:.1e}"


def _step(low: float, high: float) -> float:
    """1, 2 or 5 times a power of ten."""
    rough = (high - low) / (MOST_TICKS - 1) if high > low else 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next((m * power for m in (1, 2, 5) if m * power >= rough * (1 - 1e-9)), 10 * power)
