"""Threads that wait sleep early, as GNU OpenMP itself reports it, unless the environment says otherwise."""

import os
import re
import subprocess
import sys

import pytest


def spin_count(**environment: str) -> str | None:
    """What torch's OpenMP runs with after ``import tunescope``; None where it is not GNU's."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    shown = subprocess.run(
        [sys.executable, "-c", "import tunescope, torch"],
        env={**kept, "OMP_DISPLAY_ENV": "verbose", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"GOMP_SPINCOUNT = '(\w+)'", shown.stderr)
    return found[1] if found else None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_what_waiting_threads_do(environment: dict[str, str], expected: str) -> None:
    found = spin_count(**environment)
    if found is None:
        pytest.skip("torch's OpenMP is not GNU's")
    assert found == expected
