"""Training: the loop, what it is made of, the step and its state."""
