"""Numbers as people read them."""

from __future__ import annotations

import math
from typing import Any


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def amount(value: float) -> str:
    """A count in three or four digits: `123`, `4.57 M`, `1.30 G`, `6.49e+14`."""
    if value != value or math.isinf(value):
        return str(value)
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scale = 1e3 if letter == "k" else size
            return f"{value / scale:.3g} {letter}" if abs(value) < 1e15 else f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """`41 s`, `3 min 20 s`, `5 h 10 min`, `3 d 4 h`."""
    whole = round(seconds)
    for size, name, below, of in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {name}" + (f" {rest} {of}" if rest else "")
    return f"{whole} s" if seconds >= 1 else f"{seconds:.1f} s"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `most` of them."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / most))
    step *= next(times for times in (1, 2, 5, 10) if span / (step * times) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if last <= first and most < 20:
        return ticks(low, high, 2 * most)  # one alone does not tell the scale
    return [round(number * step, 12) for number in range(first, last + 1)]


def label(value: float, step: float) -> str:
    """A tick's number, with as many digits as tell it from the next."""
    if abs(value) >= 1e4:
        size, letter = next((size, letter) for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
                            if abs(value) >= size)  # fmt: skip
        digits = max(0, -math.floor(math.log10(step / size) + 1e-9)) if step else 0
        return f"{value / size:.{min(digits, 3)}f}{letter}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 2
    return f"{value:.1e}" if value and digits > 4 else f"{value:,.{digits if value else 0}f}"
