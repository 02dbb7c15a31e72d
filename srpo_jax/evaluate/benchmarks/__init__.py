"""Safety benchmarks, one file each: its reader, its rubrics, its rates and its published figures.

base.py says what a benchmark is, registry.py has them by name, reading.py and rates.py what they
share. None of their data comes with srpo_jax, but for the hand-made items of rsbench_mini.
"""
