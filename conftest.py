"""What holds for tests and for the examples in docstrings."""

import os

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
