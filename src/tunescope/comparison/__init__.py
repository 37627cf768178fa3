"""The spectrum on the user's own data: comparison, advice, report."""

from tunescope.comparison.runner import CompareSettings, Watcher, compare
from tunescope.comparison.table import Comparison, read_comparison, render_table

__all__ = ["CompareSettings", "Comparison", "Watcher", "compare", "read_comparison", "render_table"]
