"""A run that is interrupted in every way, again and again, must end like one that was left alone.

    python tests/support/torture.py --interruptions=20 --seed=0

Two processes with two virtual devices each, started by `python -m srpo_jax.launch`, train a tiny
model. At random moments they get SIGTERM (one, or all through the launcher) or SIGKILL (one or
all), or the newest checkpoint is damaged after a kill (a truncated file, a flipped bit, a removed
file, a stray folder), or the disk is full for a while (where a small tmpfs can be mounted). Each
time the same command is given again. What must hold is in `check_*`; the last line is a JSON
summary; exit 0 if all of it held.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from tests.support import ROOT
from tests.support.bucket_server import Bucket, serving

SAVE_EVERY, STEPS_EACH = 4, 6
END_SECONDS = 120.0  # after a signal all processes are gone by then (idle machine: 2 to 12 s)
SESSION_SECONDS = 900.0  # a session that was left alone ends by then
KINDS = (
    "term one",
    "term all",
    "kill one",
    "kill all",
    "truncated file",
    "flipped bit",
    "removed file",
    "stray folder",
    "full disk",
)
DAMAGES = KINDS[4:8]
MARKER = "commit_success.txt"  # of a step in a bucket
SPOILED = DAMAGES[:3]  # these harm the newest of several checkpoints
# gloo gives a collective 30 s: on a machine that is too busy one process may come too late. That
# ends the run with exit code 1, as it should, and it is started again; the summary counts it.
ITSELF = "by itself"
STARTED_AGAIN = 3  # times at most
CONFIG = """
from srpo_jax.configs import common

def get_config():
    config = common.get_config().unlock()
    config.name = "torture"
    config.model.path, config.data.trees = "{world}/model", "{world}/trees"
    config.data.train_records = config.data.test_records = "none"
    config.arbiter.kind = "none"
    config.pack.rows, config.objective.pairing = 4, "one"
    config.mesh.data, config.mesh.fsdp = 2, 2
    config.train.steps, config.train.save_every, config.train.keep = {steps}, {save_every}, 3
    config.train.learning_rate, config.train.warmup_steps = 3e-3, 2
    config.train.compilation_cache = "{world}/cache"
    config.train.watchdog_minutes = 5.0
    config.processes.heartbeat_seconds = 20
    return config.lock()
"""


class Broken(AssertionError):
    """A promise that did not hold."""


@dataclasses.dataclass
class Session:
    """One start of the run: what was done to it and what became of it."""

    kind: str
    code: int = 0
    began: int | None = None  # the step that it went on from; None: it did not come so far
    reached: int = 0  # the last step that the run told of
    stepped: bool = False  # whether it told of a step itself
    in_flight: bool = False  # whether it left a half-written save
    end_seconds: float = 0.0  # from the signal until all processes were gone
    text: str = ""


class Run:
    """The run in `workdir`, started as often as it takes."""

    patience = 1.0

    def __init__(self, config: pathlib.Path, workdir: pathlib.Path):
        self.config, self.workdir, self.address = config, workdir, str(workdir)
        self.lines: list[str] = []
        self.changed = threading.Condition()

    def start(self) -> None:
        self.lines = []
        argv = [
            sys.executable,
            "-m",
            "srpo_jax.launch",
            "--processes=2",
            "--devices=2",
            "--grace=30",
            "--submit",
            "--",
            "train",
            f"--config={self.config}",
            f"--workdir={self.address}",
        ]
        print(f"start: {self.address}", flush=True)
        env = dict(os.environ, PYTHONPATH=str(ROOT), PJRT_NPROC="32", HF_HUB_OFFLINE="1")
        env |= {"TF_CPP_MIN_LOG_LEVEL": "3", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
        self.launcher = subprocess.Popen(
            argv,
            env=env,
            cwd=ROOT,
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def steps(self) -> list[int]:
        """The steps that are saved."""
        return steps_on_disk(self.workdir)

    def last_step(self) -> int:
        """The last one that it is known to have done."""
        return last_step(self.workdir)

    def in_flight(self) -> bool:
        """Whether it left a save unfinished."""
        return unfinished(self.workdir)

    def harm(self, kind: str, rng: random.Random) -> str:
        """See damage."""
        return damage(self.workdir, kind, rng)

    def _read(self) -> None:
        for line in self.launcher.stdout:
            with self.changed:
                self.lines.append(line.rstrip("\n"))
                self.changed.notify_all()

    def wait_for(self, pattern: str, seconds: float = SESSION_SECONDS) -> re.Match | None:
        """The first line with the pattern; None when the run ends without it."""
        deadline, seen = time.monotonic() + seconds * self.patience, 0
        with self.changed:
            while True:
                for line in self.lines[seen:]:
                    found = re.search(pattern, line)
                    if found:
                        return found
                seen = len(self.lines)
                if not self.reader.is_alive() and seen == len(self.lines):
                    return None
                if time.monotonic() > deadline:
                    raise Broken(f"hang: no {pattern!r} within {seconds} s; {self.tail()}")
                self.changed.wait(0.2)

    def wait_for_checkpoints(self, count: int) -> None:
        """Until so many are on disk, or the run has ended."""
        deadline = time.monotonic() + SESSION_SECONDS * self.patience
        while len(self.steps()) < count and self.launcher.poll() is None:
            if time.monotonic() > deadline:
                raise Broken(f"hang: {count} checkpoints never come; {self.tail()}")
            time.sleep(0.02)

    def pids(self) -> list[int]:
        found = self.wait_for(r"pids ([\d ]+),")
        if found is None:
            raise Broken(f"the launcher did not start: {self.tail()}")
        return [int(pid) for pid in found[1].split()]

    def end(self, seconds: float) -> int:
        """The launcher's exit code; Broken if it, or a process of it, is there after `seconds`."""
        pids, seconds = self.pids(), seconds * self.patience
        try:
            code = self.launcher.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Broken(f"hang: not ended after {seconds} s; {self.tail()}") from None
        self.reader.join(timeout=10)
        deadline = time.monotonic() + seconds
        while left := [pid for pid in pids if alive(pid)]:
            if time.monotonic() > deadline:
                raise Broken(f"processes {left} are still there")
            time.sleep(0.05)
        return code

    def tail(self) -> str:
        return " | ".join(self.lines[-12:])

    def clean_up(self) -> None:
        with contextlib.suppress(Exception):
            for pid in [*self.pids(), self.launcher.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class BucketRun(Run):
    """The same of a run whose workdir is gs://bucket-a/NAME. Each session is one of other hosts.

    scratch: the folder in which the bucket's contents are looked at.
    """

    def __init__(self, config: pathlib.Path, name: str, bucket: Bucket, scratch: pathlib.Path):
        super().__init__(config, scratch)
        self.address, self.bucket, self.sessions = f"gs://bucket-a/{name}", bucket, 0
        self._name, self._scratch = f"bucket-a/{name}/", scratch

    def start(self) -> None:
        self.sessions += 1
        os.environ["XDG_CACHE_HOME"] = str(self._scratch.parent / f"hosts-{self.sessions}")
        super().start()

    @property
    def workdir(self) -> pathlib.Path:
        """What the bucket holds, as files: without steps that have no marker, and with ledgers."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        for name, data in self.bucket.all(self._name).items():
            path = self._scratch / name.removeprefix(self._name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        steps = self._scratch / "checkpoints"
        for step in steps.iterdir() if steps.is_dir() else ():
            if not (step / MARKER).exists():
                shutil.rmtree(step)
        for parts in self._scratch.glob("*.parts"):
            found = sorted(parts.iterdir())
            last = [part for part in found if part.name[:6] == found[-1].name[:6]]
            text = b"".join(part.read_bytes() for part in last)
            parts.with_name(parts.name.removesuffix(".parts")).write_bytes(text)
        return self._scratch

    @workdir.setter
    def workdir(self, _: pathlib.Path) -> None:
        pass

    def steps(self) -> list[int]:
        prefix = f"{self._name}checkpoints/"
        names = (name.removeprefix(prefix) for name in self.bucket.names_now(prefix))
        return sorted(int(n.split("/")[0]) for n in names if n.split("/")[1:] == [MARKER])

    def last_step(self) -> int:
        return max(self.steps(), default=0)  # its ledgers are a while behind

    def in_flight(self) -> bool:
        prefix = f"{self._name}checkpoints/"
        found = {n.removeprefix(prefix).split("/")[0] for n in self.bucket.names_now(prefix)}
        return bool(found - {str(step) for step in self.steps()})

    def harm(self, kind: str, rng: random.Random) -> str:
        folder = self.workdir
        for marker in (folder / "checkpoints").glob(f"*/{MARKER}"):
            marker.unlink()  # without it there is no step, so none that could be damaged
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        name = damage(folder, kind, rng)
        for path, data in before.items():
            inner = self._name + path.relative_to(folder).as_posix()
            if not path.exists():
                self.bucket.remove(inner)
            elif path.read_bytes() != data:
                self.bucket.put(inner, path.read_bytes())
        return name


def alive(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def steps_on_disk(workdir: pathlib.Path) -> list[int]:
    folder = workdir / "checkpoints"
    names = [place.name for place in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def last_step(workdir: pathlib.Path) -> int:
    """The last step that metrics.jsonl tells of."""
    path = workdir / "metrics.jsonl"
    for line in reversed(path.read_text().splitlines() if path.is_file() else []):
        with contextlib.suppress(ValueError):
            return json.loads(line)["step"]
    return 0


# What is done to a run.


def interrupt(run: Run, kind: str, rng: random.Random, disk: pathlib.Path | Bucket | None) -> None:
    """Does it, now, to a run whose two processes are under way, or have just ended."""
    pids = run.pids()
    if kind == "term all":
        run.launcher.send_signal(signal.SIGTERM)
    elif kind in ("term one", "kill one"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(pids), signal.SIGTERM if kind == "term one" else signal.SIGKILL)
    elif kind == "full disk":
        fill(disk)
    else:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def fill(disk: pathlib.Path | Bucket | None) -> None:
    """Leaves no byte free."""
    assert disk is not None
    if isinstance(disk, Bucket):
        disk.quota = 0
        return
    with open(disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 65536)


def damage(workdir: pathlib.Path, kind: str, rng: random.Random) -> str:
    """Harms the newest checkpoint, and returns what its name is; "" when there is only one."""
    steps = steps_on_disk(workdir)
    if kind == "stray folder":
        stray = (steps[-1] if steps else 0) + 1
        (workdir / "checkpoints" / str(stray)).mkdir(parents=True)
        return str(stray)
    if len(steps) < 2:
        return ""
    folder = workdir / "checkpoints" / str(steps[-1])
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size > 0)
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    if kind == "removed file":
        path.unlink()
    elif kind == "truncated file":
        path.write_bytes(content[: len(content) // 2])
    else:
        at = rng.randrange(len(content))
        content[at] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    return str(steps[-1])


# What must hold.


def check_end(session: Session, run: Run, steps: int) -> None:
    """Exit codes, and what a stop leaves on disk."""
    said = f"exit code {session.code} after {session.kind}: {run.tail()}"
    finished = session.reached == steps
    if session.kind == "quiet":
        if session.code or not finished:
            raise Broken(said)
    elif session.kind.startswith("term") and session.stepped:
        if session.code or run.steps()[-1:] != [session.reached]:
            raise Broken(f"{said}; saved {run.steps()}, not {session.reached}")
    elif not finished and (session.code == 2 or (session.code == 0 and session.stepped)):
        raise Broken(said)


def check_start(before: Session, session: Session, saved: list[int], damaged: bool) -> None:
    """What a restart may have lost. saved: the steps on disk that nobody damaged. damaged: a
    checkpoint was, since `before`.
    """
    lost = before.reached - session.began
    if saved and session.began < saved[-1]:
        raise Broken(f"went on from step {session.began}, though step {saved[-1]} was saved")
    if damaged:
        return  # how much that takes is said by `saved`
    if before.kind.startswith("term"):
        limit = 0
    else:  # a save that was under way when the kill came is not there: then it is the one before
        limit = SAVE_EVERY * (2 if before.in_flight else 1)
    if before.stepped and lost > limit:
        raise Broken(f"{before.kind} lost {lost} steps, more than {limit}")


def torture(
    folder: pathlib.Path, kinds: list[str], rng: random.Random, disk: pathlib.Path | Bucket | None
) -> dict:
    """Runs everything and returns the summary. Errors: Broken."""
    steps = STEPS_EACH * len(kinds) + 2
    world = make_world(folder)
    config = folder / "config.py"
    config.write_text(CONFIG.format(world=world, steps=steps, save_every=SAVE_EVERY))
    quiet = Run(config, folder / "quiet")
    quiet_seconds, quiet_failed = leave_alone(quiet)

    if isinstance(disk, Bucket):
        run = BucketRun(config, "tortured", disk, folder / "tortured")
    else:
        run = Run(config, (disk or folder) / "tortured")
    sessions: list[Session] = []
    before: Session | None = None  # the last session that came to its first line
    hurt: dict[str, str] = {}  # damaged checkpoints that no session has met yet: by what
    lost, named = [], []
    begin = time.time()
    todo = [*kinds, "quiet"]
    while todo:
        if sessions and sessions[-1].kind in DAMAGES:
            name = run.harm(sessions[-1].kind, rng)
            hurt |= {name: sessions[-1].kind} if name else {}
        saved = [step for step in run.steps() if str(step) not in hurt]
        run.start()
        try:
            session = one_session(run, todo[0], rng, disk, steps)
        finally:
            run.clean_up()
        sessions.append(session)
        print(
            f"{session.kind}: steps {session.began} to {session.reached}, exit {session.code}, "
            f"gone after {session.end_seconds:.1f} s",
            flush=True,
        )
        if session.kind == ITSELF:
            print(run.tail(), flush=True)
            if sum(each.kind == ITSELF for each in sessions) > STARTED_AGAIN:
                raise Broken(f"it fails again and again: {run.tail()}")
        else:
            todo.pop(0)
        check_end(session, run, steps)
        if session.began is None:
            continue
        for name, why in hurt.items():
            if not any(re.search(rf"/{name}\b.* skipped", s.text) for s in sessions):
                raise Broken(f"damaged checkpoint {name} ({why}) is not named: {run.tail()}")
            named.append(f"{why}: {name}")
        if before is not None:
            check_start(before, session, saved, bool(hurt))
            lost.append(before.reached - session.began)
        before, hurt = session, {}
    wall = time.time() - begin
    mine, theirs = parameters(run.workdir, world), parameters(quiet.workdir, world)
    if mine != theirs:
        raise Broken(f"the parameters differ: {mine} is not {theirs} of the quiet run")
    return {
        "interruptions": len(kinds),
        "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "exit_codes": [session.code for session in sessions],
        "lost_steps": lost,
        "failed_by_itself": quiet_failed + sum(session.kind == ITSELF for session in sessions),
        "damaged_and_named": named,
        "longest_end_seconds": round(max(s.end_seconds for s in sessions[:-1]), 1),
        "parameters": mine,
        "bitwise_equal": True,
        "quiet_seconds": round(quiet_seconds, 1),
        **check_ledger(run.workdir, wall),
    }


def leave_alone(run: Run) -> tuple[float, int]:
    """Lets the run go to its end: (the seconds it took, how often it failed by itself before).
    After a failure it begins anew, from an empty folder: it is what the other one is compared with.
    """
    for failed in range(STARTED_AGAIN + 1):
        begin = time.time()
        run.start()
        try:
            code = run.end(SESSION_SECONDS)
        finally:
            run.clean_up()
        if not code:
            return time.time() - begin, failed
        print(f"the quiet run failed by itself, exit {code}: {run.tail()}", flush=True)
        if code == 2:  # a mistake: it would fail again
            break
        shutil.rmtree(run.workdir, ignore_errors=True)
    raise Broken(f"the quiet run failed: {run.tail()}")


def check_ledger(workdir: pathlib.Path, wall: float) -> dict:
    """The ledger's parts against its own span, and that against the clock on the wall here."""
    from srpo_jax.runs.goodput import goodput, line

    found = goodput(workdir)
    total = sum(found["parts"].values())
    if abs(total - found["wall"]) > 0.01 * found["wall"]:
        raise Broken(f"the ledger's parts are {total:.1f} s of {found['wall']:.1f} s")
    print(line(found), flush=True)
    return {
        "wall_seconds": round(wall, 1),
        "ledger_seconds": round(total, 1),
        "ledger_misses": round(abs(wall - total) / wall, 4),
        "goodput": round(found["goodput"], 4),
        "crashes": found["crashes"],
        "sessions": found["sessions"],
    }


def one_session(
    run: Run, kind: str, rng: random.Random, disk: pathlib.Path | Bucket | None, steps: int
) -> Session:
    """Lets the run go to a random step, or a random moment before its first, and interrupts it."""
    session = Session(kind)
    signalled = time.monotonic()
    if kind != "quiet":
        if rng.random() < 0.2:  # while it starts: imports, restoring, compiling
            run.pids()
            time.sleep(rng.uniform(0, 6))
        else:
            at = run.last_step() + rng.randint(1, STEPS_EACH + 2)
            run.wait_for(rf"\bstep +{min(at, steps - 1)}/")
            time.sleep(rng.uniform(0, 0.3))
        if kind in SPOILED:  # no run is too short: STEPS_EACH + 2 steps are two saves
            run.wait_for_checkpoints(2)
        signalled = time.monotonic()
        if run.launcher.poll() is None:
            interrupt(run, kind, rng, disk)
        else:
            session.kind = ITSELF
    # A full disk shows at the next save; the program ends itself.
    slow = kind in ("quiet", "full disk")
    session.code = run.end(SESSION_SECONDS if slow else END_SECONDS)
    session.end_seconds = 0.0 if slow else time.monotonic() - signalled
    if session.code and kind == "quiet" or session.code == 0 and session.kind == ITSELF:
        session.kind = ITSELF if session.code else kind
    if kind == "full disk" and isinstance(disk, Bucket):
        disk.quota = None
    elif kind == "full disk":
        (disk / "filler").unlink(missing_ok=True)
    session.text = "\n".join(run.lines)
    told = [int(found) for found in re.findall(r"\bstep +(\d+)/\d+ loss", session.text)]
    session.stepped, session.reached = bool(told), max(told, default=run.last_step())
    # Nobody knows the room in a bucket beforehand: a save that fails comes out one save later.
    session.in_flight = run.in_flight() or (kind == "full disk" and isinstance(disk, Bucket))
    found = re.search(r"from step (\d+) to", session.text)
    if found or re.search(r"train: .* steps$", session.text, re.MULTILINE):
        session.began = int(found[1]) if found else 0
    return session


def unfinished(workdir: pathlib.Path) -> bool:
    folder = workdir / "checkpoints"
    return folder.is_dir() and any("tmp" in place.name for place in folder.iterdir())


def plan_kinds(count: int, rng: random.Random, with_disk: bool) -> list[str]:
    """Every kind about equally often, in random order."""
    kinds = [kind for kind in KINDS if with_disk or kind != "full disk"]
    first = ["term one", "kill one", "flipped bit"]  # what the short version must have
    rest = [kind for kind in kinds if kind not in first]
    rng.shuffle(rest)
    order = (first + rest) * (count // len(kinds) + 1)
    chosen = order[:count]
    rng.shuffle(chosen)
    return chosen


def make_world(folder: pathlib.Path) -> pathlib.Path:
    sys.path[:0] = [str(ROOT)]
    from tests.support import judged
    from tests.support.tiny import tiny_qwen2_5_vl
    from tests.train.test_loop import tree_record

    world = folder / "world"
    tiny_qwen2_5_vl(world / "model")
    judged.write_judged(world / "trees", [tree_record(i) for i in range(9)])
    return world


def parameters(workdir: pathlib.Path, world: pathlib.Path) -> str:
    """Hex SHA-256 of the newest checkpoint's parameters, which are verified on the way."""
    import jax
    import numpy as np

    from srpo_jax.distributed.mesh import make_mesh
    from srpo_jax.distributed.sharding import replicated
    from srpo_jax.models.blocks.param_paths import by_path
    from srpo_jax.models.policy_model import abstract_params
    from srpo_jax.models.registry import load_model_config
    from srpo_jax.train.checkpoint.manager import load_params

    place = replicated(make_mesh(devices=jax.devices()[:1]))
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        abstract_params(load_model_config(world / "model")),
    )
    step, params = load_params(workdir / "checkpoints", target)
    digest = hashlib.sha256(str(step).encode())
    for path, leaf in by_path(params).items():
        digest.update(path.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, megabytes: int = 48):
    """A tmpfs of that size, or None where it may not be mounted (no root, no such thing)."""
    place = folder / "disk"
    place.mkdir()
    done = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place],
            capture_output=True,
        )
        if shutil.which("mount") and os.getuid() == 0
        else None
    )
    mounted = done is not None and done.returncode == 0
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", place], capture_output=True)


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--interruptions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help=f"these instead of {', '.join(KINDS)}")
    parser.add_argument("--patience", type=float, default=1.0, help="times all bounds, where busy")
    parser.add_argument("--no_disk", action="store_true", help="leave the full disk out")
    parser.add_argument("--bucket", action="store_true", help="the workdir lies in a bucket")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    Run.patience = options.patience
    with tempfile.TemporaryDirectory(prefix="torture") as name:
        folder = pathlib.Path(name)
        wanted = contextlib.nullcontext() if options.no_disk else small_disk(folder)
        with serving({}) if options.bucket else wanted as disk:
            try:
                rng = random.Random(options.seed)
                kinds = (
                    options.kinds.split(",")
                    if options.kinds
                    else plan_kinds(options.interruptions, rng, disk is not None)
                )
                if options.bucket:  # where there are no folders
                    kinds = [k.replace("stray folder", "flipped bit") for k in kinds]
                summary = {"seed": options.seed, **torture(folder, kinds, rng, disk)}
            except Broken as error:
                print(json.dumps({"broken": str(error)}))
                return 1
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
