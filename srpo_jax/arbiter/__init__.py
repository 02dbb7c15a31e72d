"""Arbiters: who says whether a path and a reply are safe.

verdict.py has the words (Case, Judgement, Verdict, the Arbiter protocol), registry.py the arbiters
that a config can name: ssui_mini_rules.py knows the truth of the embedded world (word_match.py is
how it compares texts), prompted/ asks a chat model by the rubrics in rubrics/, over chat/,
combined/ makes one judgement of several arbiters', and scripted.py reads verdicts from a file.
contract.py holds every arbiter to what verdict.py says.
"""
