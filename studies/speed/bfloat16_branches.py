"""How many branches are the same whatever shares the device with them, in bfloat16 and float32.

    python -m studies.speed.bfloat16_branches [--questions=12]

The embedded world is explored one question and one branch at a time, and 16 questions at a time
with four slots each. A branch depends on its seed alone; but a product of another shape may round
otherwise, and in bfloat16 that is coarse enough to turn a draw now and then. Prints for each dtype
the share of equal branches (tokens of all of it), and last one JSON object.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile

from srpo_jax.config.load import load_config
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.explore.explore import explore
from studies.speed.timing import finish

ROOT = pathlib.Path(__file__).resolve().parents[2]
WAYS = ({"batch": 1, "slots": 1}, {"batch": 16, "slots": 4})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.speed.bfloat16_branches")
    parser.add_argument("--questions", type=int, default=12)
    args = parser.parse_args()
    shares = {}
    for dtype in ("bfloat16", "float32"):
        one, other = (branches(dtype, args.questions, way) for way in WAYS)
        assert one.keys() == other.keys()
        same = sum(one[key] == other[key] for key in one)
        shares[dtype] = same / len(one)
        print(f"{dtype}: {same} of {len(one)} branches are equal ({shares[dtype]:.1%})", flush=True)
    finish({"equal": shares})
    return 0


def branches(dtype: str, questions: int, way: dict[str, int]) -> dict[tuple, list[int]]:
    """{(question, after which step, which of them): tokens}."""
    settings = {"model.dtype": dtype, "explore.num_questions": questions}
    settings |= {f"explore.{name}": value for name, value in way.items()}
    given = [f"--config.{name}={value}" for name, value in settings.items()]
    config = load_config(str(ROOT / "configs" / "ssui_mini.py"), given)
    with tempfile.TemporaryDirectory() as workdir:
        return {
            (tree["id"], branch["at"], branch["k"]): list(branch["tokens"])
            for tree in read_shards(explore(config, workdir))
            for branch in tree["branches"]
        }


if __name__ == "__main__":
    sys.exit(main())
