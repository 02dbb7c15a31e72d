"""What verdicts come to: rates of answers (rates.py, scores.py) with intervals (intervals.py), what
became of them (paired.py, changes.py), tables of trees (summary.py), and what a small exploration
says of a large one (measures.py).
"""
