"""Looks at held-out data during training, which change nothing of what is trained."""
