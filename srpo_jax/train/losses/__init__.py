"""The losses: pure functions over log-probabilities of tokens.

objective.py adds them up to SRPO's loss, pairwise.py contrasts the two sides of a pair (the
registry: a new contrast is a function and a line there), target_logps.py makes the log-probs.
"""
