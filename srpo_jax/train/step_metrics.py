"""What only the host knows of a step: what its batch holds, how fast it went, how far the run is.

Everything is of the GLOBAL batch and comes from the packing plan, in which every tree's numbers
stand since it was laid out: no process reads another's rows, and no picture is decoded for it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from srpo_jax.config.sections import TrainSettings
from srpo_jax.distributed.accelerators import peak_flops
from srpo_jax.errors import UserError
from srpo_jax.models.flops import Work
from srpo_jax.pack.batches import Batches
from srpo_jax.train.losses.objective import PAIR_METRICS

WINDOW = 20  # steps that a rate is the mean of: one alone says little, its report may come late


class Done(NamedTuple):
    """What one step did. work: see flops.Work. flops: of the model. waited: seconds, for data."""

    questions: float
    pairs: int
    work: Work
    flops: float
    waited: float


class Rates:
    """Means over the last steps.

    MFU (PaLM, arXiv 2204.02311, appendix B) is the model's FLOPs (flops.py: of the trees, not of
    padding, masked pairs or recomputation) / (seconds x devices x dense bfloat16 peak of a device).
    A device of unknown peak has none.
    """

    def __init__(self, devices: Sequence[jax.Device]):
        self._devices, self._peak = len(devices), peak_flops(devices[0].device_kind)
        # (when a step ended, what it did); the first entry is where the others begin
        self._ends: deque[tuple[float, Done | None]] = deque(maxlen=WINDOW + 1)
        self._ends.append((time.monotonic(), None))

    def pause(self, seconds: float) -> None:
        """So long nothing was done that counts."""
        ends = [(end + seconds, done) for end, done in self._ends]
        self._ends = deque(ends, maxlen=WINDOW + 1)

    def add(self, done: Done, steps_left: int) -> dict[str, float]:
        """The rates when a step that did this ends now; {} for the first one, which compiles."""
        self._ends.append((time.monotonic(), done))
        steps = [step for _, step in list(self._ends)[1:] if step is not None]
        if self._ends[0][1] is None:
            self._ends.popleft()  # the first step compiles: it says nothing of the next ones
            return {}
        spent = max(self._ends[-1][0] - self._ends[0][0], 1e-9)
        per_device = sum(step.flops for step in steps) / spent / self._devices
        rates = {
            "perf/step_seconds": spent / len(steps),
            "perf/tokens_per_second": sum(step.work.tokens for step in steps) / spent,
            "perf/questions_per_second": sum(step.questions for step in steps) / spent,
            "perf/pairs_per_second": sum(step.pairs for step in steps) / spent,
            "perf/model_tflops_per_second": per_device / 1e12,
            "perf/data_share": min(1.0, sum(step.waited for step in steps) / spent),
            "perf/eta_seconds": spent / len(steps) * steps_left,
        }
        return rates | ({"perf/mfu": per_device / self._peak} if self._peak else {})


class StepMetrics:
    """Adds to each step's metrics what only the host knows, and hands them to the log.

    flops: of a step whose batch holds this work. devices: all of the mesh. notes: of the
    checkpoint that the run goes on from.
    """

    def __init__(
        self,
        train: TrainSettings,
        batches: Batches,
        notes: dict[str, Any],
        *,
        flops: Callable[[Work], float],
        devices: Sequence[jax.Device],
    ):
        self.settings, self.batches, self.loss = train, batches, None
        self.notes = {"num_tokens": 0, "num_questions": 0.0, **notes}
        self._flops, self._rates = flops, Rates(devices)
        self._since_save: dict[str, list[float]] = {}
        self._looked: dict[str, float] = {}
        self._begin = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def report(
        self, step: int, metrics: dict[str, jax.Array], waited: float, saved: int, writer: Any
    ) -> None:
        """Waits for the step's metrics; UserError if its loss or gradient norm is no number."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                raise UserError(
                    f"step {step}: {name} is {values[name]}; stopped, the last checkpoint is that "
                    f"of step {saved}: try a lower train.learning_rate or train.clip_norm"
                )
        self.loss, self._looked = values["loss"], {}
        done = self._done(step, waited)
        self.notes["num_tokens"] += done.work.tokens
        self.notes["num_questions"] += done.questions
        if not done.pairs:
            values = {name: v for name, v in values.items() if name not in PAIR_METRICS}
        for name, value in values.items():
            self._since_save.setdefault(name, []).append(value)
        values |= {
            "num_tokens": self.notes["num_tokens"],
            "epoch": self.notes["num_questions"] / len(self.batches.used),
            **self._rates.add(done, self.settings.steps - step),
        }
        if writer and (step % self.settings.log_every == 0 or step == self.settings.steps):
            writer.write(step, values)

    def looked(self, values: dict[str, float], seconds: float) -> None:
        """A look at held-out data after the step that was reported last; its time is none of the
        steps'."""
        self._looked = values
        self._rates.pause(seconds)

    def means(self) -> dict[str, float]:
        """The mean of each metric over the steps since the call before, as one batch says little;
        and what was seen of held-out data after the last of them, if anything was."""
        found = {name: math.fsum(seen) / len(seen) for name, seen in self._since_save.items()}
        self._since_save = {}
        return found | self._looked

    def _done(self, step: int, waited: float) -> Done:
        items = [plan.items[i] for plan, row in self.batches.stream.rows(step - 1) for i in row]
        work = Work(*(sum(numbers) for numbers in zip(*(item.work for item in items))))
        return Done(
            questions=math.fsum(item.question_share for item in items),
            pairs=sum(item.sizes.pairs for item in items),
            work=work,
            flops=self._flops(work),
            waited=waited,
        )
