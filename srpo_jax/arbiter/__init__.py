"""Arbiters: who says whether a path and a reply are safe.

verdict.py has the words (Case, Judgement, Verdict, the Arbiter protocol), registry.py the arbiters
that a config can name, ssui_mini_rules.py the one that knows the truth of the embedded world, and
word_match.py how that compares texts.
"""
