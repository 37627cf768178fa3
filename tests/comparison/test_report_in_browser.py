"""The report in a real browser: every figure is drawn and no script fails."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tunescope.comparison.report.figures import figures
from tunescope.comparison.report.page import render_report

from .fixtures import make_comparison, realistic_rows

pytestmark = pytest.mark.browser
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_every_figure_is_drawn(tmp_path: Path) -> None:
    comparison = make_comparison(realistic_rows())
    page = tmp_path / "report.html"
    page.write_text(render_report(comparison), encoding="utf-8")
    ended = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    drawn = set(re.findall(r'js-plotly-plot" id="([^"]+)"', ended.stdout))
    assert len(drawn) == len(figures(comparison))
    assert ended.stdout.count("main-svg") >= len(drawn)
    assert "CONSOLE" not in ended.stderr or "error" not in ended.stderr.lower().partition("console")[2]
