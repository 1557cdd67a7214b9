"""Fixtures for all tests: one thread, no network, and fake stages for the core."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis
import pytest

hypothesis.settings.register_profile("any machine", deadline=None)  # the first example may compile a kernel
hypothesis.settings.load_profile("any machine")


@pytest.fixture
def fakes(monkeypatch):
    """Recipes find their stages in tests/fakes instead of modelwright/stages."""
    from modelwright.core.stage import STAGES

    monkeypatch.setattr(STAGES, "package", "tests.fakes")
