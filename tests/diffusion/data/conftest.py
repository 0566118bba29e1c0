from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def _told(caplog) -> None:
    """What the user is told is in `caplog`."""
    caplog.set_level(logging.INFO, logger="fewstep")
