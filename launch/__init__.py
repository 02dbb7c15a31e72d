"""Launching runs: one spec, rendered for a target."""
