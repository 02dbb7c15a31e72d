"""Who makes which shard: workers that share out a folder, or processes that make all together.

Workers know nothing of each other but the folder: each makes the next shard that nobody has, by
leases (shard_leases.py). A policy that is too large for one process is sampled by all processes of
a job on one mesh; they are one worker then. All of them make the same shards in the same order,
which process 0 chooses, and it alone writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import jax
from jax.extend import backend

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.config.fields import Config
from srpo_jax.config.sections import ProcessesSettings
from srpo_jax.distributed.agreement import as_first_says
from srpo_jax.distributed.lifecycle import distributed_session, this_process, wait_for_all
from srpo_jax.distributed.process_info import ProcessInfo, detect_process
from srpo_jax.inference.sampling_mesh import works_alone
from srpo_jax.models.registry import load_model_config

T = TypeVar("T")
LAST_SECONDS = 24 * 3600  # process 0 reads all trees for the summary; who dies is missed before


@dataclass(frozen=True)
class Worker:
    """index: of this worker among `count` that share a folder. together: it is several processes;
    writes: and this is the one of them that writes and talks.
    """

    index: int = 0
    count: int = 1
    together: bool = False
    writes: bool = True

    def says(self, find: Callable[[], T]) -> T:
        """What `find` returns, which must be JSON: of processes together, in process 0."""
        return as_first_says(find) if self.together else find()

    def tell(self, text: str) -> None:
        """Prints a line, once for the whole worker."""
        if self.writes:
            print(text, flush=True)


def find_worker(section: ProcessesSettings, *, together: bool) -> Worker:
    """Which worker this process is, or is of. section: the config's `processes`."""
    if together:
        return Worker(together=True, writes=jax.process_index() == 0)
    if jax.process_count() > 1:  # they have met, as the hosts of a TPU slice must
        return Worker(jax.process_index(), jax.process_count())
    process = detect_process(section, os.environ)
    return Worker(process.index, process.count)


def is_alone(cfg: Config, model_dir: str | os.PathLike | None = None) -> bool:
    """Whether this process, of several that have met, samples on its own devices; see works_alone.
    model_dir: the policy, instead of cfg.model.path.
    """
    folder = os.fspath(model_dir or local_folder(cfg.model.path))
    return jax.process_count() > 1 and works_alone(cfg, load_model_config(folder, cfg.model.family))


@contextlib.contextmanager
def exploring_session(cfg: Config) -> Iterator[None]:
    """A context in which the processes of a job have met, if they sample together; entered once,
    before anything touches a device.

    Whether the policy fits the devices of this process is asked of them, and so before any meeting;
    but the hosts of a TPU slice must meet before they see a device.
    Errors: as distributed_session.
    """
    process = this_process(cfg.processes)
    if process.kind in ("explicit", "slurm") and cfg.explore.together != "yes":
        _see_own_gpus(process)
        if works_alone(
            cfg, load_model_config(local_folder(cfg.model.path, weights=False), cfg.model.family)
        ):
            yield
            return
        backend.clear_backends()
    with distributed_session(cfg.processes, cfg):
        yield
        wait_for_all(LAST_SECONDS)


def _see_own_gpus(process: ProcessInfo) -> None:
    """Has one of several tasks of a Slurm node take the GPUs that it would take if they met."""
    if process.kind == "slurm":
        own = process.local_device_ids or (int(os.environ["SLURM_LOCALID"]),)
        jax.config.update("jax_cuda_visible_devices", ",".join(map(str, own)))
