"""The losses: pure functions over log-probabilities of tokens."""
