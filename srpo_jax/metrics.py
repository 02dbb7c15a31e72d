"""What a run says of itself: metrics.jsonl, one readable line a step, TensorBoard as an extra.

Names are TRL's (loss, rewards/margins, logps/chosen, num_tokens, ...), so that dashboards people
have go on working; ours stand under srpo/ and perf/. `step` is the number of updates done.
docs/training.md says what each of them is.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any

from srpo_jax.errors import UserError
from srpo_jax.workdir import write_text

FILE = "metrics.jsonl"


def cut_after(path: pathlib.Path, step: int) -> None:
    """Drops the lines of later steps than `step`, and a last line that a kill left half-written."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_text(path, "".join(kept))


def duration(seconds: float) -> str:
    """Seconds as 7s, 1m12s or 3h05m."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minute:02d}m"
    return f"{minute}m{second:02d}s" if minute else f"{second}s"


def line(step: int, steps: int, values: dict[str, float]) -> str:
    """The readable line of a step. Leaves out what `values` does not have (no pairs, say)."""
    shown = (
        ("loss", "loss", ".4f"),
        ("ref", "srpo/loss_ref", ".4f"),
        ("exp", "srpo/loss_exp", ".4f"),
        ("margin", "rewards/margins", ".2f"),
        ("acc", "rewards/accuracies", ".2f"),
        ("gnorm", "grad_norm", ".2f"),
        ("lr", "learning_rate", ".1e"),
    )
    parts = [f"{name} {values[key]:{form}}" for name, key, form in shown if key in values]
    rates = (
        ("perf/questions_per_second", "{:.1f} q/s"),
        ("perf/pairs_per_second", "{:.1f} pairs/s"),
        ("perf/tokens_per_second", "{} tok/s"),
        ("perf/model_tflops_per_second", "{:.3g} TFLOP/s/device"),
        ("perf/mfu", "MFU {:.1%}"),
        ("perf/data_share", "data {:.0%}"),
    )
    for key, form in rates:
        if key in values:
            tokens = key == "perf/tokens_per_second"
            parts.append(form.format(_thousands(values[key]) if tokens else values[key]))
    if "perf/eta_seconds" in values:
        parts.append(f"ETA {duration(values['perf/eta_seconds'])}")
    return f"step {step}/{steps} " + " ".join(parts)


def _thousands(number: float) -> str:
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.0f}"


class Metrics:
    """Writes the metrics of one run; in a `with`. Only process 0 should make one.

    report_to: "none" or "tensorboard". Errors: UserError when its package is missing.
    """

    def __init__(self, workdir: str | os.PathLike, *, steps: int, start: int, report_to: str):
        self.steps = steps
        path = pathlib.Path(workdir) / FILE
        self._board = _tensorboard(path.parent, start) if "tensorboard" in report_to else None
        cut_after(path, start)
        self._file = path.open("a", buffering=1)  # by the line: a killed run keeps what it said

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
        if self._board:
            self._board.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """One JSON line, one printed line, one point per TensorBoard curve."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        print(line(step, self.steps, values), flush=True)
        for name, value in values.items() if self._board else ():
            self._board.add_scalar(name, value, step)


def _tensorboard(workdir: pathlib.Path, start: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError(
            "train.report_to is tensorboard but tensorboardX is not installed; "
            "pip install 'srpo_jax[report]'"
        ) from None
    # purge_step: TensorBoard then hides points of the steps that are run again.
    return SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
