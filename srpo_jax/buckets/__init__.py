"""Runs, data and models that lie in buckets: docs/places.md."""
