"""Fixtures for all tests: one thread, no network, and fake stages for the core."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest


@pytest.fixture
def fakes(monkeypatch):
    """Recipes find their stages in tests/fakes instead of modelwright/stages."""
    from modelwright.core.stage import STAGES

    monkeypatch.setattr(STAGES, "package", "tests.fakes")
