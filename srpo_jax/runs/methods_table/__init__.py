"""Methods against benchmarks, over the workdirs of several runs: what is read (collect.py), what
stands in a cell (cells.py), and how it is written down (build.py, formats.py).
"""
