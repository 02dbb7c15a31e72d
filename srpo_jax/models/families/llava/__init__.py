"""The llava family."""
