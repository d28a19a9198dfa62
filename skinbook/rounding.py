"""Numbers for a reader: as few decimals as say something."""

from __future__ import annotations

import math


def decimals(*numbers: float | None, digits: int = 2) -> int:
    """How many decimals numbers that stand together need, so that none but a zero is shown as zero; four at most."""
    small = [abs(n) for n in numbers if isinstance(n, float) and n and math.isfinite(n)]
    return next((d for d in range(digits, 4) if all(n >= 0.5 * 10**-d for n in small)), max(digits, 4))


def shown(value: float | None, low: float | None = None, high: float | None = None, digits: int = 2) -> str:
    """A number for a reader, with the ends of its interval where it has one. Whole numbers are shown whole."""
    if low is None or high is None:
        # A number too small for its decimals would be shown as 0.00.
        tiny = isinstance(value, float) and 0 < abs(value) < 0.5 * 10**-digits
        return f"{value:.2g}" if tiny else _rounded(value, digits)
    digits = decimals(value, low, high, digits=digits)
    return f"{_rounded(value, digits)}  [{_rounded(low, digits)}, {_rounded(high, digits)}]"


def _rounded(number: float | None, digits: int) -> str:
    if number is None:
        return "undefined"
    if isinstance(number, int):
        return f"{number:,}"
    text = f"{number:,.{digits}f}"
    return text if text.strip("-0.") else text.removeprefix("-")  # "-0.00" says nothing
