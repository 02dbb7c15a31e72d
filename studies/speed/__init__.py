"""Measurements of speed and memory, side by side. Each prints a table and, on its last line, one
JSON object. Run from a checkout, as `python -m studies.speed.NAME`:

    tree_vs_pairs      a question's tree in one row against pairwise rows
    vs_torch           the same against transformers and torch
    attention          attention by blocks against the plain one
    checkpoint_import  reading a checkpoint onto a mesh
    plan_table         what `srpo plan` says of the released sizes

timing.py and workload.py are what they share: programs that take turns, and random questions.
"""
