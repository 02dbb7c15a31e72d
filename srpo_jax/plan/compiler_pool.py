"""Runs the compilations of `srpo plan`: a process each, as many at once as there are cores, and a
cache, so that what was compiled once is not compiled again, not even after an interruption.
"""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from srpo_jax.config.fields import FIELDS
from srpo_jax.config.registered import import_outside
from srpo_jax.console import duration
from srpo_jax.errors import UserError
from srpo_jax.files import write_text

WORKER = "srpo_jax.plan.compile_job"
ROOT = pathlib.Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # libtpu is asked for a topology, not for devices
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # libtpu takes a lock file even to compile
    "PYTHONPATH": str(ROOT),  # also when the package is not installed
}
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")  # what the compiled program is made by
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
GUESS = 150.0  # seconds of a compilation, until one of these has been seen
# The sections that the train step is made of; of their fields those that are `host_only` change
# no byte and no FLOP of it.
IN_STEP = ("model", "objective", "train", "lora", "mesh", "pack")

Job = dict[str, Any]
Result = dict[str, Any]


def check_libtpu() -> str:
    """The installed libtpu's version. Errors: UserError if it is missing or not the one that the
    installed jax names (a newer one compiles, but its programs cannot be printed).
    """
    wanted = [
        found[1]
        for line in metadata.requires("jax") or ()
        if (found := re.match(r"libtpu\s*==\s*([\w.*]+)\s*;.*extra\s*==\s*.tpu", line))
    ]
    needed = wanted[0] if wanted else "*"
    install = f"pip install 'srpo_jax[tpu]' (or 'libtpu=={needed}')"
    try:
        have = metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        raise UserError(
            f"srpo plan compiles with libtpu, which is not installed: {install}; no TPU is needed"
        ) from None
    if not fnmatch.fnmatch(have, needed):
        raise UserError(
            f"libtpu {have} does not belong to jax {metadata.version('jax')}: {install}"
        )
    return have


def cache_folder(given: str = "") -> pathlib.Path:
    """Where results are kept: `given`, else srpo_jax/plan in the user's cache directory."""
    if given:
        return pathlib.Path(given)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(home) / "srpo_jax" / "plan"


def source_digest(module: str = WORKER) -> str:
    """Hex digest of a module's source and of all of this package that it imports."""
    seen: dict[str, bytes] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        file = _file_of(name)
        if name in seen or file is None:
            continue
        seen[name] = file.read_bytes()
        for node in ast.walk(ast.parse(seen[name])):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                todo.append(node.module)  # `from module import name`, or a module of a package:
                todo += [f"{node.module}.{alias.name}" for alias in node.names]
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(name.encode() + seen[name])
    return digest.hexdigest()[:16]


def _file_of(module: str) -> pathlib.Path | None:
    """The source of a module of this package; nothing is imported to find it."""
    base = ROOT.joinpath(*module.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if module.startswith("srpo_jax") and file.is_file():
            return file
    return None


def key_of(job: Job, model: str, versions: Sequence[str]) -> str:
    """Name of a job in the cache. model: all that matters of the model's config.json, as text."""
    config = {name: dict(job["config"][name]) for name in IN_STEP if name in job["config"]}
    for field in FIELDS.values():
        if field.host_only:
            config.get(field.section, {}).pop(field.leaf, None)
    content = [{**job, "config": config}, model, *versions, *_outside_digest(config)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _outside_digest(config: dict[str, Any]) -> list[str]:
    """Of the module of a loss from outside this package, which `source_digest` does not see."""
    loss = config.get("objective", {}).get("contrast", "")
    if ":" not in loss:
        return []
    file = import_outside(loss, "objective.contrast").__file__
    assert file, loss  # it has a loss in it
    return [hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()]


class Compiler:
    """Compiles jobs; in a `with`, so that no process outlives it.

    report(line): called with a line when a compilation begins or ends. workers: processes at once
    (default: CPU cores; each takes 2 to 4 GB of memory). worker: the module that compiles a job,
    by default the one for train steps.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        model: str,
        report: Callable[[str], None],
        *,
        workers: int = 0,
        worker: str = "",
    ):
        self.folder, self.model, self.report = folder, model, report
        self.worker = worker or WORKER
        self.workers = workers or len(os.sched_getaffinity(0))
        versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
        flags = [f"{name}={os.environ.get(name, '')}" for name in FLAGS]
        self.versions = [*versions, *flags, source_digest(self.worker)]
        self.began = time.monotonic()
        self._took: list[float] = []
        self._running: dict[subprocess.Popen, tuple[int, float, Any, Any]] = {}

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: Any) -> None:
        for process in list(self._running):
            self._end(process)

    def until(self, jobs: Sequence[Job], names: Sequence[str], wanted: int) -> list[Result | None]:
        """Results in the order of `jobs`, from the first on, until `wanted` of them are "ok"; None
        for those that were not needed.
        """
        results: list[Result | None] = [None] * len(jobs)
        todo = list(range(len(jobs)))
        while todo or self._running:
            fit = sum(result is not None and result["status"] == "ok" for result in results)
            while todo and fit + len(self._running) < wanted and len(self._running) < self.workers:
                index = todo.pop(0)
                known = results[index] = self._cached(jobs[index])
                if known is None:
                    left = min(wanted - fit, 1 + len(todo) + len(self._running))
                    self._start(index, jobs[index], names[index], left)
                else:
                    self.report(f"known: {names[index]}: {_outcome(known)}")
                    fit += known["status"] == "ok"
            if fit >= wanted and not self._running:
                break
            for index, result in self._finished():
                results[index] = result
                if result["status"] != "failed":  # of what is not understood nothing is kept
                    path = self._path(jobs[index])
                    write_text(path, json.dumps({"job": jobs[index], "result": result}, indent=1))
                self.report(f"done:  {names[index]}: {_outcome(result)}")
        return results

    def _path(self, job: Job) -> pathlib.Path:
        return self.folder / f"{key_of(job, self.model, self.versions)}.json"

    def _cached(self, job: Job) -> Result | None:
        try:
            return json.loads(self._path(job).read_text())["result"]
        except (OSError, ValueError, KeyError):
            return None

    def _start(self, index: int, job: Job, name: str, left: int) -> None:
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        process = subprocess.Popen(
            [sys.executable, "-m", self.worker],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )
        self._running[process] = (index, time.monotonic(), out, err)
        assert process.stdin  # it is a pipe, see above
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()  # and left open: its end is the worker's end
        each = statistics.median(self._took) if self._took else GUESS
        rounds = -(-left // self.workers)
        self.report(f"start: {name} (about {duration(rounds * each)} for what is left)")

    def _finished(self) -> list[tuple[int, Result]]:
        """Waits for at least one process, if any runs."""
        while self._running:
            ended = [process for process in self._running if process.poll() is not None]
            found = []
            for process in ended:
                index, began, out, err = self._running[process]
                out.seek(0)
                err.seek(0)
                lines = out.read().decode().splitlines()
                said = err.read().decode(errors="replace").strip().splitlines()
                self._end(process)
                if process.returncode == 0 and lines:
                    found.append((index, json.loads(lines[-1])))
                    if found[-1][1]["status"] == "ok":  # a refusal takes seconds
                        self._took.append(time.monotonic() - began)
                else:
                    why = said[-1][:300] if said else f"exit code {process.returncode}"
                    found.append((index, {"status": "failed", "message": why}))
            if found:
                return found
            time.sleep(0.1)
        return []

    def _end(self, process: subprocess.Popen) -> None:
        _, _, *files = self._running.pop(process)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin:
            process.stdin.close()
        for file in files:
            file.close()


def _outcome(result: Result) -> str:
    if result["status"] == "ok":
        return f"{result['peak_bytes'] / 2**30:.1f} GiB, {duration(result['seconds'])} to compile"
    if result["status"] == "oom":
        needed = result["needed_gib"]
        return "does not fit" + (f": needs {needed:.1f} GiB" if needed else "")
    return f"{result['status']}: {result['message']}"
