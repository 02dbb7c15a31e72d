"""Experiments: one readable file each, which starts from common.py."""
