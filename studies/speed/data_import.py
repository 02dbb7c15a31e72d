"""How fast `srpo data import` reads rows without pictures, and how much memory it takes.

    python -m studies.speed.data_import [--rows=100000] [--kind=trl|step_dpo] [--model=DIR]

Rows of about a thousand characters are written as JSON lines (trl) or as one JSON list (step_dpo),
imported by a process of its own, of which the system tells the largest memory and the seconds of
CPU, all threads together, whatever else the cores were busy with. With --model trees and verdicts
are made, too. Prints one JSON object; exit code 1 below 2,000 rows/s (without a model) or from 1 GB
on.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import sys
import tempfile

from studies.speed.timing import run

ROOT = pathlib.Path(__file__).resolve().parents[2]
LEAST, MOST = 2000, 1e9  # rows/s, bytes
WORDS = "look at this picture of a kitchen and say what to do with the bottle on the left".split()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.speed.data_import")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kind", choices=("trl", "step_dpo"), default="trl")
    parser.add_argument("--model", default="", help="HF directory: make trees by its tokenizer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write(pathlib.Path(folder), args.kind, args.rows)
        size = path.stat().st_size
        command = [sys.executable, "-m", "srpo_jax", "data", "import", str(path), f"{folder}/out"]
        command += [f"--config.model.path={args.model}"] if args.model else []
        said = pathlib.Path(folder, "said")
        with open(said, "w") as file:
            code, spent = run(command, cwd=ROOT, stdout=file, stderr=file)
        if code:
            sys.exit(said.read_text())
    peak = round(spent.peak_mib * 2**20)
    rate = args.rows / spent.seconds
    found = {
        "seconds": round(spent.seconds, 1),
        "rows_per_second": round(rate),
        "peak_mb": peak // 10**6,
        "cpu_seconds": round(spent.cpu_seconds, 1),
    }
    print(json.dumps({**vars(args), "mb": size // 10**6, **found}))
    return int((rate < LEAST and not args.model) or peak >= MOST)


def write(folder: pathlib.Path, kind: str, rows: int) -> pathlib.Path:
    """A file of this kind."""
    rng = random.Random(0)

    def text(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count))

    def row(i: int) -> dict:
        made = {"id": i, "prompt": text(20), "chosen": text(90), "rejected": text(90) + "."}
        if kind == "step_dpo":
            made["initial_reason_steps"] = f"Step 1: {text(9)}.\nStep 2: {text(9)}.\n"
        return made

    path = folder / ("rows.jsonl" if kind == "trl" else "rows.json")
    with open(path, "w") as file:
        file.write("" if kind == "trl" else "[\n")
        for i in range(rows):
            end = "\n" if kind == "trl" or i == rows - 1 else ",\n"
            file.write(json.dumps(row(i)) + end)
        file.write("" if kind == "trl" else "]\n")
    return path


if __name__ == "__main__":
    raise SystemExit(main())
