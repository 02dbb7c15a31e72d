"""The same step beside PyTorch."""
