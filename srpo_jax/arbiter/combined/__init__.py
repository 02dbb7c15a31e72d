"""Arbiters that make one judgement of what several others say.

members.py makes and asks the others; vote.py, cascade.py, jury.py and graded.py are the ways.
"""
