"""When does SRPO help? Methods compared by one protocol on worlds whose truth is known.

python -m studies.method --quick        about ten minutes, the micro world

micro/      a world of tokens, seconds a run, in which everything is tried
mini.py     SSUI-mini, with the functions that `srpo` calls
methods.py  the methods, each a recipe with the settings that are tried
protocol.py seeds, budget, selection on validation, the test split once; resumable
"""
