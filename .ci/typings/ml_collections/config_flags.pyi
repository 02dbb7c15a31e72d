"""Untyped where it comes from, and so here."""

from typing import Any

def __getattr__(name: str) -> Any: ...
