"""Evaluation: greedy generations, verdicts, rates."""
