"""Numbers as people read them; one spelling for the terminal table, the advice and the report."""

from __future__ import annotations

MISSING = "—"
"""Stands where nothing was measured."""

FRACTIONS = frozenset({"accuracy", "macro_f1", "exact_match", "preference_accuracy"})
"""Metrics between 0 and 1, shown as percentages; any other is shown on its own scale (chrF: 0 to 100)."""

_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "exact_match": "exact match",
    "chrf": "chrF",
    "preference_accuracy": "preference accuracy",
    "judge": "judge's score",
}
_DIGITS = {"judge": 2}


def metric_name(metric: str) -> str:
    """The metric as written in prose."""
    return _NAMES.get(metric, metric)


def metric_scale(metric: str) -> float:
    """Factor from the stored score to the shown one: 100 for fractions, 1 for all others."""
    return 100.0 if metric in FRACTIONS else 1.0


def digits(metric: str) -> int:
    """Decimals of a shown score."""
    return _DIGITS.get(metric, 1)


def score(value: float | None, metric: str) -> str:
    """``91.2%`` for fractions, ``54.3`` for scores on a scale of their own."""
    if value is None:
        return MISSING
    return f"{value * metric_scale(metric):.{digits(metric)}f}{'%' if metric in FRACTIONS else ''}"


def score_interval(value: float | None, low: float | None, high: float | None, metric: str) -> str:
    """``91.2 [89.0, 93.1]``, without unit."""
    if value is None:
        return MISSING
    scale, shown = metric_scale(metric), digits(metric)
    bounds = "" if low is None or high is None else f" [{low * scale:.{shown}f}, {high * scale:.{shown}f}]"
    return f"{value * scale:.{shown}f}{bounds}"


def points(value: float, metric: str, signed: bool = False) -> str:
    """A difference of scores without its unit: ``2.4``, or ``+2.4`` when signed."""
    shown, decimals = value * metric_scale(metric), digits(metric)
    shown = 0.0 if abs(shown) < 0.5 * 10**-decimals else shown
    return f"{shown:{'+' if signed else ''}.{decimals}f}"


def number(value: float | None, digits: int = 2) -> str:
    """A plain number with fixed decimals."""
    if value is None:
        return MISSING
    return f"{0.0 if abs(value) < 0.5 * 10**-digits else value:.{digits}f}"


def count(value: float | None) -> str:
    """Whole numbers in three figures: ``0``, ``921k``, ``134.5M``, ``1.2B``."""
    if value is None:
        return MISSING
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            shown = value / size
            return f"{shown:.0f}{suffix}" if shown >= 99.95 and suffix == "k" else f"{shown:.1f}{suffix}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """``0 s``, ``48 s``, ``2 m 05 s``, ``1 h 12 m``."""
    if seconds is None:
        return MISSING
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"


def milliseconds(value: float | None) -> str:
    """``8.4``, ``84``, ``1,240``: without unit, no more figures than a latency deserves."""
    if value is None:
        return MISSING
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def megabytes(value: float | None) -> str:
    """``3.7 MB``, ``540 MB``, ``1.2 GB``."""
    if value is None:
        return MISSING
    if value >= 1000:
        return f"{value / 1000:.1f} GB"
    return f"{value:.1f} MB" if value < 99.95 else f"{value:.0f} MB"


def listing(names: list[str], joint: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {joint} {names[-1]}"
