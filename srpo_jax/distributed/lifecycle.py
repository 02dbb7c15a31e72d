"""Several processes, one run: they meet, make sure that they run the same thing, and end together.

`distributed_session` is entered once, before anything touches a device. With one process it does
nothing. Why it is needed: a process that fails leaves the others waiting in their next collective,
for minutes or for ever, and whoever started the run sees a hang instead of an error.

The coordinator, a service inside process 0, keeps a small key-value store that all can read and
write. A failure that Python can see (an exception anywhere) ends all processes within seconds, with
the same exit code:

    process 2 raises     report_failure writes "srpo/failed/first" = [2, exit code, its error line]
                         before any clean-up, as that may wait for the others
    processes 0, 1, 3    are perhaps inside a collective and see nothing; but a thread of each
                         (_Lifeline) reads the store once a second, finds the key, prints "process
                         1 stops, as process 2 failed: ..." and ends the process
    all                  wait for each other for up to ENDING_SECONDS first, so that process 0, and
                         the store with it, is not gone before everyone has read it

The key can be set once, so of several failures the first is the one that counts; an exception that
is only the echo of it (a collective breaks when a peer goes) does not change the exit code. What
Python cannot see (a killed process) shows as missing heartbeats: the others are aborted from C++,
exit code 134. Who is missing is said before that (peers.py).
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax._src import cloud_tpu_init, distributed  # no public way to the store and to this fact

import srpo_jax
from srpo_jax.config.fields import Config
from srpo_jax.config.sections import ProcessesSettings
from srpo_jax.distributed.agreement import as_first_says
from srpo_jax.distributed.peers import Meeting, Peers, say
from srpo_jax.distributed.process_info import ProcessInfo, detect_process
from srpo_jax.errors import RunFailure, UserError, one_line
from srpo_jax.keepers import place_of

HEARTBEAT_SECONDS = {True: 30, False: 100}  # by whether all are on this machine
MEET_SECONDS = 300  # for all to come to the start, and to each check
SEEN_SECONDS = 60  # for all to see a file; network file systems may take as long
COMPILE_SECONDS = 3600  # between the first process that has compiled and the last
POLL_SECONDS = 1.0
ENDING_SECONDS = 8  # for all to hear of a failure; over at once when all have
UNWIND_SECONDS = 20 + ENDING_SECONDS  # for a failed process to end by itself, before it is ended
FAILED = "srpo/failed/"
_waits = itertools.count()  # the same number on all processes: one barrier after the other
_failing = threading.Event()  # this process has a failure of its own


@contextlib.contextmanager
def distributed_session(
    section: ProcessesSettings, config: Config | None = None
) -> Iterator[ProcessInfo]:
    """A context in which jax.distributed is up and all processes run the same code and settings.

    section: the config's `processes`; config: the whole one, to be compared.
    Errors: UserError, on all processes, when they differ, and when the description is half-set.
    """
    process = this_process(section)
    if process.kind == "single":
        yield process
        return
    _initialise(process, section.heartbeat_seconds)
    lifeline = _Lifeline(_heartbeat_seconds(process, section.heartbeat_seconds))
    try:
        with report_failure():
            agree("program", program_facts(config))
            yield process
    except SystemExit:  # all leave, as they agreed to
        lifeline.leave()
        raise
    except BaseException as error:
        lifeline.end_after_failure(_exit_code(error), _line(error))
        raise
    lifeline.leave()


def this_process(section: ProcessesSettings) -> ProcessInfo:
    """Which process of how many this one is, on this machine and in this environment."""
    on_tpu = cloud_tpu_init.running_in_cloud_tpu_vm
    return detect_process(section, os.environ, tpu_host=on_tpu)


@contextlib.contextmanager
def report_failure() -> Iterator[None]:
    """A context that tells the other processes of a failure inside it before anything outside it
    is cleaned up, as cleaning up may wait for them.
    """
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        tell_failure(_exit_code(error), _line(error))
        raise


def tell_failure(code: int, line: str) -> None:
    """Makes all other processes end with this exit code. With one process it does nothing."""
    client = distributed.global_state.client
    if client is None:
        return
    _failing.set()
    said = json.dumps([jax.process_index(), code, line])
    with contextlib.suppress(Exception):  # told already, or nobody is left to be told
        client.key_value_set(FAILED + "first", said)


def agree(topic: str, facts: Mapping[str, Any]) -> None:
    """Compares `facts` (JSON values) over all processes; each topic once.

    Errors: UserError, the same line on every process, that names what differs and where.
    """
    client = distributed.global_state.client
    if client is None:
        return
    # Each writes its own facts; process 0 reads all, compares them with its own and writes what
    # differs, which all read.
    index, limit = jax.process_index(), MEET_SECONDS * 1000
    key = f"srpo/agree/{topic}/"
    client.key_value_set(f"{key}{index}", json.dumps(dict(facts)))
    if index == 0:
        first = json.loads(json.dumps(dict(facts)))
        differ = []
        for other in range(1, jax.process_count()):
            theirs = json.loads(client.blocking_key_value_get(f"{key}{other}", limit))
            differ += _differences(first, theirs, other)
        client.key_value_set(f"{key}verdict", json.dumps(differ[:4]))
    verdict = json.loads(client.blocking_key_value_get(f"{key}verdict", limit))
    if verdict:
        # All raise it. So none tells the others, who would then end on that instead of their own
        # line, before each has said that it fails by itself.
        _failing.set()
        _wait_a_little(client, f"{key}verdict")
        raise UserError(f"the processes do not run the same thing: {'; '.join(verdict)}")


def agree_on_file(path: pathlib.Path, read: Callable[[pathlib.Path], str]) -> None:
    """That all processes see the file which process 0 wrote: that its folder is one for all. Some
    network file systems take up to a minute to show it. With one process this does nothing.

    read: what stands in the file; "" for none. Errors: UserError, the same on every process.
    """
    if distributed.global_state.client is None:
        return
    there = as_first_says(lambda: read(path))
    end = time.monotonic() + SEEN_SECONDS
    while (found := read(path)) != there and time.monotonic() < end:
        time.sleep(0.2)
    fact = f"the file {place_of(path)} that process 0 wrote"
    agree(f"file {path.name}", {fact: "there" if found == there else "not there"})


def compile_together(step: Any, *args: Any) -> Any:
    """The jitted `step` compiled for these arguments; returns when all processes have it.

    Without waiting, the first one's collectives would stand and wait for the last one's compiler:
    gloo gives them 30 s. With one process this is the step itself.
    """
    if distributed.global_state.client is None:
        return step
    compiled = step.lower(*args).compile()
    wait_for_all()
    return compiled


def wait_for_all(seconds: int = COMPILE_SECONDS) -> None:
    """Returns when all processes are here, each with its program compiled, say. With one process
    it does nothing."""
    client = distributed.global_state.client
    if client is not None:
        client.wait_at_barrier(f"srpo/all/{next(_waits)}", seconds * 1000)


def _differences(first: dict[str, Any], theirs: dict[str, Any], other: int) -> list[str]:
    return [
        f"{name} is {theirs.get(name)!r} on process {other} but {first.get(name)!r} on process 0"
        for name in sorted(first.keys() | theirs.keys())
        if first.get(name) != theirs.get(name)
    ]


def program_facts(config: Config | None = None) -> dict[str, Any]:
    """What must be the same everywhere before anything is computed: code, jax, devices, config."""
    digest = hashlib.sha256()
    root = pathlib.Path(srpo_jax.__file__).parent
    # In a checkout data_pipelines is a link, which rglob of the folder above it does not follow.
    for folder in (root, root / "data_pipelines"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    facts = {
        "code": f"srpo_jax {srpo_jax.__version__} {digest.hexdigest()[:12]}",
        "jax": jax.__version__,
        "python": ".".join(map(str, sys.version_info[:2])),
        "devices": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
    }
    for name, value in _flat(config.to_dict()).items() if config is not None else ():
        if name != "processes.index":
            facts[f"config.{name}"] = value
    return facts


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat


def _initialise(process: ProcessInfo, heartbeat_seconds: int) -> None:
    """Starts jax.distributed.

    Errors: UserError when the cluster is not there or described wrongly; RunFailure when a cluster
    did not answer in time, which a pool of nodes that is still growing does too.
    """
    options: dict[str, Any] = {
        "heartbeat_timeout_seconds": _heartbeat_seconds(process, heartbeat_seconds),
        "initialization_timeout": MEET_SECONDS + 30,  # Meeting ends it before
        "shutdown_timeout_seconds": 60,
    }
    if process.kind == "explicit":
        options |= {
            "coordinator_address": process.coordinator,
            "num_processes": process.count,
            "process_id": process.index,
            "cluster_detection_method": "deactivate",
        }
        if process.loopback:  # without it the coordinator listens, unprotected, on every network
            options["coordinator_bind_address"] = process.coordinator
    elif process.kind == "slurm":
        options["local_device_ids"] = process.local_device_ids
    who, whom = "this process", "the others"
    if process.kind in ("explicit", "slurm"):
        who = f"process {process.index}"
        others = f"the other {process.count - 1} of {process.count} processes"
        at = f" at {process.coordinator}" if process.coordinator else ""
        whom = f"process 0{at}" if process.index else others
    if process.kind == "explicit" and process.index == 0:
        _check_port(process)
    try:
        with Meeting(who, whom, MEET_SECONDS, _exit):
            jax.distributed.initialize(**options)
    except Exception as error:
        # jax raises these two when it finds no cluster or half of one, others when what it found
        # does not answer: a metadata server, a name without an address, a coordinator.
        mistake = isinstance(error, (ValueError, TypeError))
        if process.kind == "explicit" and not mistake:
            raise
        said = one_line(f"{type(error).__name__}: {error}", 200)
        text = f"jax.distributed did not start on this {process.kind} cluster ({said}); "
        if mistake:
            raise UserError(
                f"{text}set SRPO_COORDINATOR, SRPO_PROCESS_ID and SRPO_NUM_PROCESSES, or "
                "SRPO_NUM_PROCESSES=1 for this host alone"
            ) from None
        raise RunFailure(
            f"{text}start it again when all hosts are there, or set SRPO_NUM_PROCESSES=1 for this "
            "host alone"
        ) from None


def _heartbeat_seconds(process: ProcessInfo, chosen: int) -> int:
    return chosen or HEARTBEAT_SECONDS[process.loopback]


def _check_port(process: ProcessInfo) -> None:
    """Errors: RunFailure when process 0 cannot listen where all others will look for it. Exit code
    1, as it may be the run before, which ends just now.
    """
    host, _, port = process.coordinator.rpartition(":")
    place = host.strip("[]") if process.loopback else ""
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((place, int(port)))
    except OSError as error:
        raise RunFailure(
            f"process 0 cannot listen on port {port} of {host} ({error.strerror}): stop what does, "
            "or give all processes another SRPO_COORDINATOR"
        ) from None
    except OverflowError:
        raise UserError(f"SRPO_COORDINATOR={process.coordinator}: ports end at 65535") from None


def _line(error: BaseException) -> str:
    """The line by which the other processes, and their users, hear of a failure."""
    return one_line(f"{type(error).__name__}: {error}", 300)


def _exit_code(error: BaseException) -> int:
    """What the program will exit with when this is not caught, as cli.main has it."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, UserError) else 1


class _Lifeline:
    """The thread that looks for another process's failure, and the two ways to end."""

    def __init__(self, heartbeat: float = HEARTBEAT_SECONDS[False]) -> None:
        self._client: Any = distributed.global_state.client
        self._index = jax.process_index()
        self._peers = Peers(self._client, self._index, heartbeat / 2, heartbeat)
        with contextlib.suppress(Exception):  # then the thread finds the same
            self._peers.look()
        self._over = threading.Event()
        self._said = threading.Lock()  # held from the line that names the failed process on
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()
        # The first thread waits for an answer of a store that is stopped; this one does not.
        threading.Thread(target=self._watch_coordinator, name="coordinator", daemon=True).start()

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            try:
                found = self._first()
                if found is None:
                    self._peers.look()
            except Exception:  # the coordinator is gone: jax aborts us, or we are leaving
                if not self._over.is_set():
                    say(f"process {self._index}: process 0 is gone, and the run with it")
                return
            if found is None:
                continue
            index, code, line = found
            if _failing.is_set():  # it ends by itself, or is ended
                self._over.wait(UNWIND_SECONDS)
            else:
                self._say_who(index, line)
                self._meet()
            _exit(code)

    def _watch_coordinator(self) -> None:
        silent = 0.0
        while not self._over.wait(POLL_SECONDS):
            before, silent = silent, self._peers.coordinator_is_silent()
            if before and silent:  # twice: this process itself may have been stopped
                say(
                    f"process {self._index}: process 0 has not answered for {silent:.0f} s: "
                    "stopped or cut off? All end when it stays silent"
                )
                return

    def _first(self) -> tuple[int, int, str] | None:
        """(process, exit code, line) of the failure that was reported first, None so far."""
        found = self._client.key_value_dir_get(FAILED)
        return tuple(json.loads(found[0][1])) if found else None

    def _say_who(self, index: int, line: str) -> None:
        """Prints who failed, once: this thread and a collective may learn of it together."""
        if not self._said.acquire(blocking=False):
            return
        say(f"process {self._index} stops, as process {index} failed: {line}")

    def _meet(self) -> None:
        """Waits for the others, so that process 0, where the store lives, does not go before all
        have read it.
        """
        _wait_a_little(self._client, "srpo/ending")
        if self._index == 0:  # all are on their way out, and jax aborts who finds the store gone
            time.sleep(0.5)

    def leave(self) -> None:
        """The run ended well: waits for the others to end too."""
        self._over.set()
        self._thread.join()
        jax.distributed.shutdown()

    def end_after_failure(self, code: int, line: str) -> None:
        """Python goes on (somebody prints the error), but what is left of jax is not waited for.

        A failure here may be another one's echo: a collective breaks when a peer goes, before the
        thread has looked. The first report decides the exit code.
        """
        with contextlib.suppress(Exception):  # the coordinator is gone
            index, first_code, first_line = self._first() or (self._index, code, line)
            if index != self._index and first_line != line:  # else all say the same anyway
                self._say_who(index, first_line)
            code = first_code
        self._meet()
        atexit.register(_exit, code)  # runs before jax's own clean-up, which waits for all


def _wait_a_little(client: Any, name: str) -> None:
    """Waits until all processes are here, but at most ENDING_SECONDS: some may be dead."""
    with contextlib.suppress(Exception):
        client.wait_at_barrier(name, 1000 * ENDING_SECONDS)


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
