"""Tensor names of each model family; see hf/names.py for what they are used for."""
