"""`srpo run`: explore, judge, train, export, eval, round after round, each in its own workdir."""
