"""When does SRPO help? Methods compared by one protocol on worlds whose truth is known.

python -m studies.method --quick        about ten minutes, the micro world
python -m studies.method --phases       who wins where, cell by cell

micro/      a world of tokens, seconds a run, in which everything is tried
mini.py     SSUI-mini, with the functions that `srpo` calls
protocol.py seeds, budget, selection on validation, the test split once; resumable
phases.py   few settings of six methods in a grid of cells
"""
