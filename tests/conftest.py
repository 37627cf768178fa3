"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no failure of the property.
settings.register_profile("tunescope", deadline=None)
settings.load_profile("tunescope")


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The real SmolLM2-135M-Instruct as a transformers folder, from the user's own cache, so that it is made once."""
    from tunescope.base.sources import resolve

    return resolve("smollm2-135m").folder


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("TUNESCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
