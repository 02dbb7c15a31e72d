"""What a run says of itself: metrics.jsonl, one readable line a step, trackers as extras.

Names are TRL's (loss, rewards/margins, logps/chosen, num_tokens, ...), so that dashboards people
have go on working; ours stand under srpo/ and perf/. `step` is the number of updates done.
docs/training.md says what each of them is.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from srpo_jax.errors import one_line
from srpo_jax.files import write_text
from srpo_jax.runs.appended import Appended
from srpo_jax.runs.trackers import make_trackers

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

    report_to: see trackers.py; name and config are what they are told of the run. A tracker that
    fails later on is dropped, which is said once: all it would get is in metrics.jsonl.
    Errors: UserError when a package is missing.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        steps: int,
        start: int,
        report_to: str,
        name: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        self.steps = steps
        path = pathlib.Path(workdir) / FILE
        self._trackers = make_trackers(
            report_to, path.parent, name=name, config=config or {}, start=start
        )
        cut_after(path, start)
        self._file = Appended(path)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
        self._tell(lambda tracker: tracker.close(), "did not get the end of the run")

    def write(self, step: int, values: dict[str, float]) -> None:
        """One JSON line, one printed line, one point per curve of a tracker."""
        self._file.write((json.dumps({"step": step, **values}) + "\n").encode())
        print(line(step, self.steps, values), flush=True)
        self._tell(lambda tracker: tracker.write(step, values), f"gets nothing from step {step} on")

    def _tell(self, call: Callable[[Any], None], lost: str) -> None:
        """The call to each tracker; those that fail are dropped: a service that is down is no
        reason to end a run.
        """
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                said = one_line(f"{type(error).__name__}: {error}", 200)
                print(
                    f"train.report_to: {tracker.name} {lost} ({said}); {FILE} has it all",
                    file=sys.stderr,
                    flush=True,
                )
