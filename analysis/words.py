"""Numbers and estimates as people read them."""

import math
from collections.abc import Sequence

_MOST_LISTED = 4


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """A fixed number of decimals with a real minus; "–" where there is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def significant(value: float, digits: int = 4) -> str:
    """So many significant digits; "–" where there is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}g}".replace("-", "−")


def estimate(value: float, low: float, high: float) -> str:
    """`−0.46 [−0.61, −0.27]`."""
    if not math.isfinite(value):
        return "–"
    if not math.isfinite(low):
        return number(value, sign=True)
    return f"{number(value, sign=True)} [{number(low, sign=True)}, {number(high, sign=True)}]"


def p_value(value: float) -> str:
    """`0.012`, `< 0.001`."""
    if value is None or not math.isfinite(value):
        return "–"
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def p_phrase(value: float) -> str:
    """`p = 0.012`, `p < 0.001`."""
    text = p_value(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def percent(share: float, *, sign: bool = False) -> str:
    """`12 %`, with a decimal below 10 %."""
    digits = 1 if abs(share) < 0.0995 else 0
    return f"{number(100 * share, digits, sign=sign)} %"


def either(values: Sequence[object]) -> str:
    """`64`, `64 or 128`, `8, 16 or 32`; many numbers, in order, as `8 to 512`."""
    spelled = [str(v) for v in values]
    if len(spelled) > _MOST_LISTED and all(isinstance(v, int | float) for v in values):
        return f"{spelled[0]} to {spelled[-1]}"
    return " or ".join(filter(None, (", ".join(spelled[:-1]), spelled[-1])))


def count(n: int, noun: str, plural: str | None = None) -> str:
    """`1 trial`, `12 trials`."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """`3.2 s`, `4 min 10 s`, `2 h 5 min`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
