"""What verdicts come to: rates of answers (scores.py, rates.py), tables of trees (summary.py), and
what a small exploration says of a large one (measures.py).
"""
