"""Requests in, samples out as they finish: what exploration, evaluation and judging sample with.

The device holds `rows` questions, each with `slots` branches at work and a queue of the others
(slots.py). A row whose branches have all ended is read out and gets the next question. What
the host does (reading pictures, tokenising, whatever the caller does with a sample) it does while
the device decodes.

A branch is a function of (policy, prompt, path, start, seed, how tokens are drawn) alone.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from srpo_jax.console import Working, compiling
from srpo_jax.distributed.lifecycle import wait_for_all
from srpo_jax.distributed.mesh import over_processes
from srpo_jax.distributed.sharding import batch_sharding, fetch, put_same, row_shards
from srpo_jax.errors import UserError
from srpo_jax.inference.engine.ahead import Ahead
from srpo_jax.inference.engine.counts import Counts
from srpo_jax.inference.engine.drawing import OwnSampling, Sampling
from srpo_jax.inference.engine.lowering import compile_once, lower
from srpo_jax.inference.engine.requests import Sample, SampleRequest, TokenIds
from srpo_jax.inference.engine.slots import Programs, Queue, Shape, State
from srpo_jax.models.inputs import causal_row, check_length, pad_rows

# Rises when the same seed gives other branches.
SAMPLER_VERSION = 2
MOST_SLOTS = 16  # of a row, unless told otherwise


def slots_for(branches: int) -> int:
    """The slots of a row for questions of so many branches: as many as are idle for a tenth of the
    time at most, but MOST_SLOTS.

    While the last branches of a row end nobody follows. With lengths that are exponential and
    independent the largest of S is H_S = 1 + 1/2 + ... + 1/S mean lengths, so S slots lose
    S (H_S - 1) mean lengths, beside the N that are decoded.
    """
    slots, harmonic = 1, 1.0
    while slots < MOST_SLOTS:
        harmonic += 1 / (slots + 1)
        if 9 * (slots + 1) * (harmonic - 1) > branches:
            break
        slots += 1
    return slots


def enough_rows(rows: int) -> int:
    """Of how many rows all branches must have ended before the others wait for their questions to
    be exchanged."""
    return max(1, rows // 16)


class _Part(NamedTuple):
    """Branches of a request that share a row: `count` from number `first` on, of `total`. stop:
    texts that end them."""

    number: int
    total: int
    first: int
    count: int
    inputs: dict[str, np.ndarray]
    queue: Queue
    stop: tuple[str, ...]


class Engine:
    """Samples branches with programs of fixed shapes, so each compiles once.

    Args:
      model: a PolicyModel; params: its parameters, on any devices.
      ids: end and suppressed token ids (a Processor will do).
      rows: questions at a time; branches: of a question in one row, more take several rows.
      slots: of a row; 0: slots_for(branches). Neither rows nor slots change a branch.
      prompt_tokens: room for prompt and path together; patches: room for a question's patches, a
        positive multiple of the vision tower's patch_unit. max_new_tokens: of a branch.
      sampling: how tokens are drawn; None: every request says it, and its most tokens. stop: texts
        that end a branch, with the token that completes one of them as its last.
      mesh: with axes data, fsdp and tensor: rows are spread over the first two (their product must
        divide `rows`). None: wherever the parameters are. Of a mesh over several processes all of
        them are to make the same calls with the same requests, and all get all samples.
    """

    def __init__(
        self,
        model: Any,
        params: Any,
        ids: TokenIds,
        *,
        rows: int,
        branches: int,
        prompt_tokens: int,
        patches: int,
        max_new_tokens: int,
        sampling: Sampling | None,
        slots: int = 0,
        stop: Sequence[str] = (),
        mesh: jax.sharding.Mesh | None = None,
    ):
        if min(rows, branches, prompt_tokens, max_new_tokens) < 1 or slots < 0:
            raise ValueError("rows, branches and token budgets start at 1")
        slots = min(slots or slots_for(branches), branches)
        shape = Shape(rows, slots, branches, prompt_tokens, patches, max_new_tokens)
        eos = np.asarray(sorted(ids.eos_ids), np.int32)
        blocked = np.asarray(sorted(set(ids.suppress_ids) - set(ids.eos_ids)), np.int32)
        self.programs = Programs(model, shape, sampling, eos, blocked, mesh)
        self.params, self.shape, self.counts = params, shape, Counts()
        self._ids, self._stop, self._mesh = ids, tuple(stop), mesh
        self._parts = row_shards(mesh)
        # Processes of one mesh do the same in the same order, which a thread would not.
        self._together = over_processes(mesh)
        self._depth = 0 if self._together else max(2, 2 * self._parts)
        if rows % self._parts:
            raise ValueError(f"{rows} rows do not divide over {self._parts} devices")
        self._state: Any = None  # on the devices from the first request on, without a question
        self._compiled: dict[str, Any] = {}

    def __call__(self, requests: Sequence[SampleRequest]) -> list[list[Sample]]:
        """The branches of every request, in order. UserError naming a request that does not fit."""
        for request in requests:
            self.check(request)
        found = dict(self.stream(requests))
        return [found[i] for i in range(len(requests))]

    def stream(
        self,
        requests: Iterable[SampleRequest | None],
        *,
        live: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[int, list[Sample]]]:
        """(number of the request, its branches in order), as each is complete.

        requests are taken as rows become free, a few beforehand, in a thread of their own. What
        they raise, and a UserError naming one that does not fit, comes when all requests before it
        are complete. live: of requests that somebody makes meanwhile; each is taken when there is a
        row for it, in this thread, and None among them says that there is none just now. At every
        turn live() says whether to go on; if not, all are left as they are.
        """
        work = Working()
        found: dict[int, list[Sample | None]] = {}
        depth = 0 if live is not None else self._depth
        with Ahead(self._packed(requests), depth=depth) as source:
            for part, samples in self._run(iter(source), live or (lambda: True)):
                own = found.setdefault(part.number, [None] * part.total)
                own[part.first : part.first + part.count] = samples
                there = [sample for sample in own if sample is not None]
                if len(there) == part.total:
                    del found[part.number]
                    self.counts.seconds += work.seconds()
                    yield part.number, there
                    work = Working()
            if source.error is not None:
                raise source.error

    def leave_device(self) -> None:
        """Frees what it holds on the devices but its programs; `params` is to be set before it
        samples again."""
        self.params = self._state = None

    def check(self, request: SampleRequest) -> None:
        """UserError naming a request that does not fit the budgets; ValueError for a wrong one."""
        used = len(request.prompt.tokens) + len(request.path)
        room, patches = self.shape.tokens, self.shape.patches
        if used > room:
            raise UserError(
                f"{request.name}: its prompt and path are {used} tokens and the sampler has room "
                f"for {room}; shorten it or give the sampler more room"
            )
        if len(request.prompt.patches) > patches:
            raise UserError(
                f"{request.name}: its pictures have {len(request.prompt.patches)} patches and the "
                f"sampler has room for {patches}; use smaller pictures or give it more room"
            )
        new = request.max_new_tokens or self.shape.new_tokens
        if not 1 <= new <= self.shape.new_tokens:
            raise ValueError(f"{request.name}: more new tokens than the engine has room for")
        Sampling(request.temperature, request.top_p)  # ValueError for what is none
        last = request.prompt.next_position + len(request.path) + new
        try:
            check_length(last, self.programs.model.config)
        except UserError as error:
            raise UserError(f"{request.name}: {error}") from None
        if len(request.starts) != len(request.seeds):
            raise ValueError(f"{request.name}: one seed per start")
        if not all(0 <= start <= len(request.path) for start in request.starts):
            raise ValueError(f"{request.name}: a branch starts outside its path")

    def _packed(self, requests: Iterable[SampleRequest | None]) -> Iterator[_Part | None]:
        """The requests in parts that a row holds, as the prefill takes them; None where there is
        None."""
        numbers = itertools.count()
        for request in requests:
            if request is None:
                yield None
                continue
            number = next(numbers)
            self.check(request)
            row = causal_row(request.prompt, np.asarray(request.path, np.int32))
            inputs = pad_rows([row], tokens=self.shape.tokens, patches=self.shape.patches)
            total = len(request.starts)
            for first in range(0, max(total, 1), self.shape.branches):
                count = min(self.shape.branches, total - first)
                queue = self._queue(request, slice(first, first + count))
                stop = self._stop + request.stop
                yield _Part(number, total, first, count, inputs, queue, stop)

    def _queue(self, request: SampleRequest, some: slice) -> Queue:
        """Branches that leave early have the most to say: they come first."""
        starts = np.asarray(request.starts[some], np.int32)
        seeds = [(seed >> 32, seed & 0xFFFFFFFF) for seed in request.seeds[some]]
        count, size = len(starts), (1, self.shape.branches)
        queue = Queue(
            np.ones(size, np.int32),
            np.zeros(size, np.int32),
            np.zeros((*size, 2), np.uint32),
            np.zeros(size, bool),
            np.zeros(size, np.int32),
        )
        queue.shared_len[0, :count] = len(request.prompt.tokens) + starts
        queue.first_position[0, :count] = request.prompt.next_position + starts
        queue.seeds[0, :count] = np.asarray(seeds, np.uint32).reshape(-1, 2)
        queue.wanted[0, :count] = True
        queue.priority[0, :count] = len(request.path) - starts
        if self.programs.sampling is None:
            told = (request.temperature, request.top_p)
            sampling = OwnSampling(*(np.full(size, value, np.float32) for value in told))
            most = request.max_new_tokens or self.shape.new_tokens
            queue = queue._replace(sampling=sampling, most=np.full(size, most, np.int32))
        return queue

    def _run(
        self, parts: Iterator[_Part | None], live: Callable[[], bool]
    ) -> Iterator[tuple[_Part, list[Sample]]]:
        """Every part with its samples, as its row is done."""
        # Whoever leaves in the middle leaves no state behind.
        state, self._state = self._state, None
        seated: dict[int, _Part] = {}
        ended: list[tuple[_Part, Any]] = []
        more = True
        while live():
            while more and (seats := self._free(seated)):
                taken = list(itertools.islice(parts, len(seats)))
                more = len(taken) == len(seats)
                given = {row: part for row, part in zip(seats, taken) if part is not None}
                if given:
                    state = self._prefill(state, given)
                    seated.update(given)
                if len(given) < len(taken):  # nobody else is there just now
                    break
            if not seated and not more:
                yield from self._read(ended)
                self._state = state
                break
            if not seated:
                yield from self._read(ended)  # before the next one is waited for
                ended = []
                continue
            state, told = self._decode(state, more, len(seated))
            yield from self._read(ended)
            busy, steps, used = fetch(told)
            self._count(int(steps), int(used))
            if any(part.stop for part in seated.values()):
                state = self._halt(state, seated)
                busy = fetch(self._call("busy", self.programs.busy, state))
            ended = [
                (seated.pop(row), self._call("read", _read_row, state, np.int32(row)))
                for row in sorted(seated)
                if not busy[row]
            ]

    def _free(self, seated: Container[int]) -> list[int]:
        """A row without a question of each part of the mesh that has one."""
        rows = self.shape.rows // self._parts
        parts = (range(first, first + rows) for first in range(0, self.shape.rows, rows))
        found = (next((row for row in part if row not in seated), None) for part in parts)
        return [row for row in found if row is not None]

    def _count(self, steps: int, used: int) -> None:
        self.counts.steps += steps
        self.counts.slot_steps += steps * self.shape.rows * self.shape.slots
        self.counts.used += used

    def _read(self, ended: Sequence[tuple[_Part, Any]]) -> Iterator[tuple[_Part, list[Sample]]]:
        for part, arrays in ended:
            tokens, logps, length, finished = fetch(arrays)
            samples = [
                self._sample(
                    tokens[w, : length[w]], logps[w, : length[w]], bool(finished[w]), part.stop
                )
                for w in range(part.count)
            ]
            self.counts.questions += 1
            self.counts.branches += part.count
            self.counts.tokens += sum(len(sample.tokens) for sample in samples)
            self.counts.finished += sum(sample.finished for sample in samples)
            yield part, samples

    def _sample(
        self, tokens: np.ndarray, logps: np.ndarray, finished: bool, stop: Sequence[str]
    ) -> Sample:
        if stop and self._stopped(tokens, stop):
            lengths = range(1, len(tokens) + 1)
            size = lengths[
                bisect.bisect_left(lengths, True, key=lambda n: self._stopped(tokens[:n], stop))
            ]
            tokens, logps, finished = tokens[:size], logps[:size], True
        return Sample(tokens, float(logps.sum(dtype=np.float64)), finished)

    def _stopped(self, tokens: np.ndarray, stop: Sequence[str]) -> bool:
        text = self._ids.decode(tokens.tolist())
        return any(each in text for each in stop)

    def _halt(self, state: State, seated: dict[int, _Part]) -> State:
        """The state without the branches that have said a stop string."""
        shape, looked = self.shape, (state.tokens, state.which, state.t)
        tokens, which, t = fetch(self._call("look", lambda *arrays: arrays, *looked))
        stop = np.zeros(which.shape, bool)
        for row, part in seated.items():
            for slot, branch in enumerate(which[row]) if part.stop else ():
                if branch < shape.branches:
                    said = tokens[row, branch, : t[row, slot]]
                    stop[row, slot] = self._stopped(said, part.stop)
        if not stop.any():
            return state
        return self._call("halt", self.programs.halt, state, self._put(stop), donate=0)

    def _prefill(self, state: Any, given: dict[int, _Part]) -> State:
        """Puts questions into rows, at most one for each part of the mesh. given: {row: part}."""
        if state is None:
            state = self._call("empty", self.programs.empty, self.params)
        rows = self.shape.rows // self._parts
        filling = next(iter(given.values()))
        parts, row = [filling] * self._parts, np.zeros(self._parts, np.int32)
        used = np.zeros(self._parts, bool)
        for at, part in given.items():
            parts[at // rows], row[at // rows], used[at // rows] = part, at % rows, True
        inputs = {
            name: np.concatenate([part.inputs[name] for part in parts]) for name in filling.inputs
        }
        queue = jax.tree.map(lambda *arrays: np.concatenate(arrays), *(p.queue for p in parts))
        told = self._put((inputs, queue, row, used))
        return self._call("prefill", self.programs.prefill, self.params, state, *told, donate=1)

    def _decode(self, state: State, more: bool, seated: int) -> tuple[State, Any]:
        # With nobody to come a row that is done costs nothing. Those that stood empty before do not
        # count.
        rows = self.shape.rows
        enough = np.int32(enough_rows(rows) + rows - seated if more else rows + 1)
        state, *told = self._call(
            "decode", self.programs.decode, self.params, state, enough, donate=1
        )
        return state, told

    def _put(self, arrays: Any) -> Any:
        """Host arrays whose first axis is that of the rows, on the devices."""
        return arrays if self._mesh is None else put_same(arrays, batch_sharding(self._mesh))

    def _call(self, name: str, function: Any, *args: Any, donate: int | None = None) -> Any:
        """function(*args), compiled at its first call."""
        if name not in self._compiled:
            lowered = lower(self.programs, function, *args, donate=donate)
            quiet = name not in ("prefill", "decode") or jax.process_index() > 0
            told = compiling(f"sampling ({name})", quiet=quiet)
            self._compiled[name] = compile_once(lowered, *args, told=told)
            if self._together:
                wait_for_all()
        return self._compiled[name](*args)


def _read_row(state: State, row: Any) -> tuple[Any, Any, Any, Any]:
    """(tokens [N, M], logps [N, M], length [N], finished [N]) of a row."""
    parts = (state.tokens, state.logps, state.length, state.finished)
    found = [jax.lax.dynamic_index_in_dim(part, row, keepdims=False) for part in parts]
    return found[0], found[1], found[2], found[3]
