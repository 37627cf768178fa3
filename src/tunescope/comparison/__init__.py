"""Compares every method on the user's own data: results, recommendation, report."""

from tunescope.comparison.report.terminal import render_table
from tunescope.comparison.results import Comparison, read_comparison
from tunescope.comparison.runner import CompareSettings, Watcher, compare

__all__ = ["CompareSettings", "Comparison", "Watcher", "compare", "read_comparison", "render_table"]
