"""What a run says of itself: metrics.jsonl, one readable line a step, trackers as extras.

Names are TRL's (loss, rewards/margins, logps/chosen, num_tokens, ...), so that dashboards people
have go on working; ours stand under srpo/ and perf/. `step` is the number of updates done.
docs/training.md says what each of them is.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from srpo_jax.console import WIDTH, Bar, duration
from srpo_jax.errors import one_line
from srpo_jax.files import naming, write_text
from srpo_jax.runs.appended import Appended
from srpo_jax.runs.trackers import make_trackers

FILE = "metrics.jsonl"


def cut_after(path: pathlib.Path, step: int, *, look: bool = False) -> None:
    """Drops the lines of later steps than `step`, and a last line that a kill left half-written;
    with `look` also what is said of a look at held-out data after `step`, which comes again.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
            again = look and values["step"] == step and any(map(_is_look, values))
            if values["step"] <= step and not again:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_text(path, "".join(kept))


def _is_look(name: str) -> bool:
    return name.startswith("validation/")


# Columns of a step's line: metric, how it is written, and in which order columns are left out when
# a line is too long; 0: never.
COLUMNS: tuple[tuple[str, str, int], ...] = (
    ("loss", "loss {:7.4f}", 0),
    ("validation/loss", "held-out loss {:7.4f}", 0),
    ("validation/loss_ref", "held-out ref {:7.4f}", 0),
    ("validation/accuracies", "acc {:4.2f}", 4),
    ("validation/safety_rate", "safe {:5.1f} %", 1),
    ("validation/effectiveness_rate", "effective {:5.1f} %", 2),
    ("validation/benign_agreement", "as before {:4.2f}", 3),
    ("srpo/loss_ref", "ref {:7.4f}", 5),
    ("srpo/loss_exp", "exp {:6.4f}", 6),
    ("rewards/margins", "margin {:5.2f}", 7),
    ("rewards/accuracies", "acc {:4.2f}", 9),
    ("grad_norm", "gnorm {:5.2f}", 8),
    ("learning_rate", "lr {:.1e}", 4),
    ("perf/questions_per_second", "{:5.1f} q/s", 3),
    ("perf/pairs_per_second", "{:5.1f} pairs/s", 2),
    ("perf/tokens_per_second", "{:>6} tok/s", 0),
    ("perf/mfu", "MFU {:5.1%}", 0),
    ("perf/data_share", "data {:3.0%}", 1),
    ("perf/eta_seconds", "ETA {:>6}", 0),
)
WRITTEN: dict[str, Callable[[float], Any]] = {
    "perf/tokens_per_second": lambda n: f"{n / 1000:.1f}k" if n >= 1000 else f"{n:.0f}",
    "perf/eta_seconds": duration,
}


def line(step: int, steps: int, values: dict[str, float], width: int = WIDTH) -> str:
    """The readable line of a step, at most `width` wide. Leaves out what `values` does not have (no
    pairs, say), and what has no room: metrics.jsonl has it all.
    """
    shown = [
        (form.format(WRITTEN.get(key, float)(values[key])), rank)
        for key, form, rank in COLUMNS
        if key in values
    ]
    begin = f"step {step:>{len(str(steps))}}/{steps}"
    for rank in range(1, 1 + max(rank for *_, rank in COLUMNS)):
        if len(begin) + sum(len(text) + 1 for text, _ in shown) > width:
            shown = [each for each in shown if each[1] != rank]
    return " ".join([begin, *(text for text, _ in shown)])


class Metrics:
    """Writes the metrics of one run; in a `with`. Only process 0 should make one.

    look: whether there will be a look at held-out data at step `start`, see cut_after. report_to:
    see trackers.py; name and config are what they are told of the run. A tracker that
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
        look: bool = False,
    ):
        self.steps = steps
        self._path = path = pathlib.Path(workdir) / FILE
        self._trackers = make_trackers(
            report_to, path.parent, name=name, config=config or {}, start=start
        )
        cut_after(path, start, look=look)
        self._file = Appended(path)
        self._bar = Bar(every=True)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.__exit__()
        self._file.close()
        self._tell(lambda tracker: tracker.close(), "did not get the end of the run")

    def write(self, step: int, values: dict[str, float]) -> None:
        """One JSON line, one printed line, one point per curve of a tracker."""
        with naming(self._path):
            self._file.write((json.dumps({"step": step, **values}) + "\n").encode())
        self._bar.show(line(step, self.steps, values, self._bar.room()), step, self.steps)
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
