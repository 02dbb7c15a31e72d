"""Plans compile for TPUs as a user's would: without what this session sets for CPUs."""

import pytest


@pytest.fixture(autouse=True)
def plain_flags(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
