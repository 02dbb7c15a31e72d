"""What tests share: where things are, tiny checkpoints of every family, programs to start."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
RELEASED = SUPPORT / "released"  # config.json of released checkpoints
