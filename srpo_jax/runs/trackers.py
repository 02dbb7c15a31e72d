"""Where metrics go besides metrics.jsonl: TensorBoard, Weights & Biases, trackio.

Each is an extra of the package, imported only when `train.report_to` names it, on process 0 only.
What they are told: the run's name, the settings and numbers. No environment, no key: a service
reads its own login where it always does.
"""

from __future__ import annotations

import importlib
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

from srpo_jax.errors import UserError, one_line
from srpo_jax.files import write_text

EXTRAS = {  # tracker: (module, extra of this package)
    "tensorboard": ("tensorboardX", "report"),
    "wandb": ("wandb", "wandb"),
    "trackio": ("trackio", "trackio"),
}


def make_trackers(
    report_to: str, workdir: pathlib.Path, *, name: str, config: Mapping[str, Any], start: int
) -> list[Any]:
    """The trackers that `report_to` names ("none", or names with commas), each with its `name`,
    `write(step, values)` and `close()`.

    start: the step that the run goes on from: later points of a killed session are written again.
    Errors: UserError when a package is missing, or the service does not take the run.
    """
    made = []
    for tracker, module in modules_of(report_to).items():
        try:
            made.append(_KINDS[tracker](module, workdir, name, config, start))
        except Exception as error:  # not logged in, no network: whatever the service raises
            for other in made:
                other.close()
            said = one_line(error, 200)
            raise UserError(
                f"train.report_to is {report_to} but {tracker} did not start "
                f"({type(error).__name__}: {said}); set it up, or use train.report_to=none"
            ) from None
    return made


def modules_of(report_to: str) -> dict[str, Any]:
    """{tracker: its module} of those that `report_to` names. Errors: UserError when a package is
    missing.
    """
    return {tracker: _module(tracker) for tracker in report_to.split(",") if tracker != "none"}


def _module(tracker: str) -> Any:
    module, extra = EXTRAS[tracker]
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"train.report_to is {tracker} but {module} is not installed; "
            f"pip install 'srpo_jax[{extra}]'"
        ) from None


class _TensorBoard:
    """Event files under WORKDIR/tensorboard."""

    name = "tensorboard"

    def __init__(self, module: Any, workdir: pathlib.Path, name: str, config: Any, start: int):
        # purge_step: TensorBoard then hides points of the steps that are run again.
        self._board = module.SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class _Wandb:
    """A run of the project "srpo". A restart goes on with the same run:
    WORKDIR/tracker_run_wandb.txt keeps its id. W&B keeps the first value it gets for a step; those
    of steps that are run again are the same, bit for bit.
    """

    name = "wandb"

    def __init__(self, module: Any, workdir: pathlib.Path, name: str, config: Any, start: int):
        path = workdir / f"tracker_run_{self.name}.txt"  # of each its own: both may be named
        if not (start and path.is_file()):
            write_text(path, secrets.token_hex(4) + "\n")
        self._module = module
        settings = {"project": "srpo", "config": dict(config), "resume": "allow"}
        module.init(**settings, **self._names(name, path.read_text().strip(), workdir))

    def _names(self, name: str, run: str, workdir: pathlib.Path) -> dict[str, Any]:
        return {"name": name, "id": run, "dir": str(workdir)}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        self._module.finish()


class _Trackio(_Wandb):
    """The same calls; a run is known by its name."""

    name = "trackio"

    def _names(self, name: str, run: str, workdir: pathlib.Path) -> dict[str, Any]:
        return {"name": f"{name}-{run}"}


_KINDS = {"tensorboard": _TensorBoard, "wandb": _Wandb, "trackio": _Trackio}
