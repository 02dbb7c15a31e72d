"""Run one `srpo` command on this machine: N processes with M virtual CPU devices each.

A mesh of 8 devices on a laptop is the cheapest way to try one of 8 chips, and several processes
the cheapest way to try several hosts. They talk over loopback only. When one of them fails the
others are ended, and all are started again while --restarts lasts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from typing import IO

from srpo_jax.errors import UserError
from srpo_jax.launch.spec import USER_ERROR, Spec

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
POLL_SECONDS = 0.05
END_SECONDS = 5.0  # how long what was killed is waited for
# A port is free when it is picked and listened on a moment later. The kernel gives none of these
# to a connection in between: on Linux its own begin at 32768, elsewhere at 49152 or so.
PORTS = range(20000, 32000)
PORT_TRIES = 100


def argv(spec: Spec) -> list[str]:
    """What is executed: no shell in between, so that the program itself gets the signals."""
    return [*(spec.program or (sys.executable, "-m", "srpo_jax.cli")), *spec.command]


def environment(spec: Spec, process: int, port: int | str) -> dict[str, str]:
    """What is set for one process, besides the environment that is there already.

    SRPO_COORDINATOR, SRPO_NUM_PROCESSES and SRPO_PROCESS_ID are what srpo_jax reads; one process
    alone needs none of them.
    """
    # Wins over a --xla_force_host_platform_device_count that XLA_FLAGS may hold already.
    variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(spec.devices)}
    if spec.processes > 1:
        variables |= {
            "SRPO_COORDINATOR": f"127.0.0.1:{port}",
            "SRPO_NUM_PROCESSES": str(spec.processes),
            "SRPO_PROCESS_ID": str(process),
            "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",  # jax's own default: everywhere
            "PYTHONUNBUFFERED": "1",  # through a pipe, lines would come late and in lumps
        }
    return variables | spec.own_environment()


def render(spec: Spec) -> str:
    """One command line per process that does the same from a shell; holds no other variable."""
    lines = []
    for process in range(spec.processes):
        variables = environment(spec, process, "PORT").items()
        words = ["env", *(f"{name}={value}" for name, value in variables), *argv(spec)]
        lines.append(shlex.join(words))
    if spec.processes > 1:
        note = "# PORT: a free one, picked at each start; all processes run at the same time"
        return " &\n".join(lines) + f"\n{note}"
    return lines[0]


def run(spec: Spec) -> int:
    """Starts the processes, waits, and returns 0 when all ended well.

    Otherwise the exit code of the one that failed first (128 + n when signal n ended it). Exit code
    2, a mistake of the user, is never tried again. SIGTERM, SIGINT and SIGHUP go to every process,
    which save and stop; nothing is started after that. No process is left when this returns, and
    when this process itself is killed they get SIGTERM.
    """
    job = _Job(spec)
    with job.signals():
        for start in range(spec.max_restarts + 1):
            code = job.run_once(start)
            if code in (0, USER_ERROR) or job.signalled:
                break
            if start < spec.max_restarts:
                _say(f"ended with {code}; restart {start + 1} of {spec.max_restarts}")
    return code


class _Job:
    """The processes of one start, and what they have in common over all starts."""

    def __init__(self, spec: Spec):
        self.spec = spec
        self.children: list[subprocess.Popen] = []
        self.signalled = False
        self.pending: list[int] = []  # signals that came before the children were there
        self.ports: set[int] = set()  # of all starts: each has another one
        self.lock = threading.Lock()  # one line at a time

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Signals go to the children. Only the main thread of a process may change handlers."""
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, self._forward) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self, number: int, _frame: object) -> None:
        self.signalled = True
        if not self.children:
            self.pending.append(number)
        _signal_all(self.children, number)

    def run_once(self, start: int) -> int:
        """Starts all, waits for all; the first bad exit code, or 0."""
        readers: list[threading.Thread] = []
        try:
            self._start(start)
            while self.pending:
                _signal_all(self.children, self.pending.pop(0))
            readers = self._readers()
            return self._wait()
        finally:
            for child in self.children:
                _end_group(child)
            for reader in readers:
                reader.join(timeout=5)  # a process that left the group may keep the pipe open
            self.children = []

    def _start(self, start: int) -> None:
        several, words = self.spec.processes > 1, _ending_with_parent(argv(self.spec))
        pipe = subprocess.PIPE if several else None
        port, children = free_port(self.ports), []
        self.ports.add(port)
        try:
            for process in range(self.spec.processes):
                child = subprocess.Popen(
                    words,
                    env={**os.environ, **environment(self.spec, process, port)},
                    stdout=pipe,
                    stderr=pipe,
                    start_new_session=True,  # Ctrl-C reaches it once, through us
                )
                children.append(child)
        finally:
            self.children = children
        if several:
            pids = " ".join(str(child.pid) for child in children)
            _say(f"start {start}: pids {pids}, coordinator 127.0.0.1:{port}")

    def _readers(self) -> list[threading.Thread]:
        threads = []
        for number, child in enumerate(self.children):
            for source, sink in ((child.stdout, sys.stdout), (child.stderr, sys.stderr)):
                if source is not None:
                    work = (f"[{number}] ", source, sink)
                    threads.append(threading.Thread(target=self._copy, args=work, daemon=True))
        for thread in threads:
            thread.start()
        return threads

    def _copy(self, prefix: str, source: IO[bytes], sink: IO[str]) -> None:
        for line in source:
            text = line.decode(errors="replace").rstrip("\n")
            with self.lock, contextlib.suppress(OSError):  # nobody reads on: drain all the same
                sink.write(f"{prefix}{text}\n")
                sink.flush()

    def _wait(self) -> int:
        """Waits for all. After a first failure the others get SIGTERM, after --grace SIGKILL."""
        failed, deadline = 0, float("inf")
        while True:
            codes = [child.poll() for child in self.children]
            bad = [code for code in codes if code]
            if bad and not failed:
                failed = bad[0] if bad[0] > 0 else 128 - bad[0]
                deadline = time.monotonic() + self.spec.grace_seconds
                if len(codes) > 1:
                    _say(_who_failed(codes))
                _signal_all(self.children, signal.SIGTERM)
            if None not in codes:
                return failed
            if time.monotonic() > deadline:
                _signal_all(self.children, signal.SIGKILL)
                deadline = float("inf")
            time.sleep(POLL_SECONDS)


def _who_failed(codes: list[int | None]) -> str:
    """One line: which processes ended badly first, and how."""
    ways = (
        f"process {n} "
        + (f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}")
        for n, code in enumerate(codes)
        if code
    )
    return ", ".join(ways) + "; ending the others"


def _signal_all(children: list[subprocess.Popen], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _end_group(child: subprocess.Popen) -> None:
    """Ends what is left of a child: itself, and what it started (its data workers).

    Waits until they are gone, for END_SECONDS at most: SIGKILL only asks for it, and where nobody
    reaps orphans they stay in the group after they have ended.
    """
    deadline = time.monotonic() + END_SECONDS
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(child.pid, signal.SIGKILL)  # its own session, so its group has its pid
            child.wait()
            time.sleep(0.01)
    child.wait()


# Runs before the program, in its process: SIGTERM when the launcher is killed and can pass nothing
# on any more. Not a preexec_fn, which needs a fork: jax's threads do not survive one.
_END_WITH_PARENT = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(143); os.execvp(sys.argv[2], sys.argv[2:])"
)


def _ending_with_parent(words: list[str]) -> list[str]:
    if shutil.which(words[0]) is None:
        raise UserError(f"cannot start {words[0]}: there is no such program")
    if sys.platform != "linux":
        return words
    return [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid()), *words]


def free_port(used: Collection[int] = ()) -> int:
    """A port of 127.0.0.1, none of `used`, that nobody listens on now. One of PORTS; when tries
    find none of them free, any that the kernel gives. Errors: UserError when it gives none.
    """
    # Not the random module: two programs that seed it alike would pick the same ports.
    for wanted in [*(secrets.choice(PORTS) for _ in range(PORT_TRIES)), *[0] * PORT_TRIES]:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", wanted))
            port = probe.getsockname()[1]
            if port not in used:
                return port
    raise UserError("no port of 127.0.0.1 is free")


def _say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)
