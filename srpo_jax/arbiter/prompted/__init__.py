"""The arbiter that asks a chat model by a rubric.

prompted.py puts it together: rubric.py is what is asked, rubric_file.py reads it, untrusted.py
fences what is judged, answers.py reads an answer strictly, score.py weighs its log-probabilities,
tally.py makes one judgement of several answers, canary.py has replies that try to order their own
verdict.
"""
