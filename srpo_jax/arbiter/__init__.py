"""Arbiters: who says whether a path and a reply are safe.

verdict.py has the words (Case, Judgement, Verdict, the Arbiter protocol), rules.py the arbiter
that knows the truth of SSUI-mini, and make_arbiter.
"""
