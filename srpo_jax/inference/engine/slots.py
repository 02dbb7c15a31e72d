"""The engine's two programs, and the arrays that lie on the devices between their calls.

    prefill   one question into each part of the mesh: its keys and values, the first token of each
              of its branches, and the queue of those branches
    decode    up to so many steps of all slots; a slot whose branch ended takes the next one of its
              row's queue within the same loop

A row holds one question: its prefix is read once a step for all slots of the row. Branch w of it
sees the first `shared_len[w]` tokens of the prefix and what it has drawn itself. What a branch
computes depends on nothing else, wherever and beside whomever it runs: its own keys lie at their
own places, and attention adds the blocks of its own tokens in their own order.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from srpo_jax.distributed.sharding import ROW_AXES
from srpo_jax.inference.engine.drawing import OwnSampling, Sampling, Seen, allowed_ids, draw
from srpo_jax.models.attention.xla import own_length, write_own
from srpo_jax.models.policy_model import PolicyModel, head_matrix

STEPS = 64  # of one call of decode, at most: how long the host may wait


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of the programs. rows: questions at a time; branches: of a question at most; slots:
    of a row, not more than those; tokens: of prompt and path; patches: of a question's pictures;
    new_tokens: of a branch."""

    rows: int
    slots: int
    branches: int
    tokens: int
    patches: int
    new_tokens: int


class Queue(NamedTuple):
    """The branches of a row. first_position, shared_len: [N]; seeds uint32 [N, 2]; wanted bool [N];
    priority int32 [N]: high ones first. sampling and most int32 [N], which are new tokens: of
    programs that leave them to the branches, else None."""

    shared_len: Any
    first_position: Any
    seeds: Any
    wanted: Any
    priority: Any
    sampling: Any = None
    most: Any = None


class State(NamedTuple):
    """All that decoding changes or reads but the parameters. Q rows, S slots, N branches, M tokens.

    own: (k, v), each [L, Q, S, K, own_length(M), d]. shared: (k, v), each [L, Q, K, T, d]. queue:
    of every row, [Q, N]. order [Q, N]: the branches as they are taken; of which `count` [Q] are to
    be decoded at all, and `taken` [Q] were. first [Q, N]: the first token. which [Q, S]: the branch
    of a slot, N for none; t [Q, S]: how many tokens it has drawn; token [Q, S]: the last. tokens,
    logps [Q, N, M], length, finished [Q, N]: what was drawn. words: None, or (where each id first
    stands in the row [Q, V], whether a slot drew it [Q, S, V]).
    """

    own: Any
    shared: Any
    queue: Queue
    order: Any
    count: Any
    taken: Any
    first: Any
    which: Any
    t: Any
    token: Any
    tokens: Any
    logps: Any
    length: Any
    finished: Any
    words: Any


@dataclasses.dataclass(frozen=True)
class Programs:
    """The pure functions for one model and shape. sampling: None leaves it to the branches. mesh:
    None, or one with axes data, fsdp and tensor. eos, blocked: int32 ids that end a branch, and
    that are never drawn."""

    model: PolicyModel
    shape: Shape
    sampling: Sampling | None
    eos: Any
    blocked: Any
    mesh: Mesh | AbstractMesh | None

    @property
    def remembers(self) -> bool:
        """Whether a draw depends on the tokens before it."""
        return self.sampling is not None and self.sampling.remembers

    def empty(self, params: Any) -> State:
        """A state without a question. params: real or abstract parameters."""
        s, text = self.shape, self.model.config.text
        rows, slots, branches = s.rows, s.slots, s.branches
        heads = text.num_kv_heads
        dtype = self.model.dtype
        own = (text.num_layers, rows, slots, heads, own_length(s.new_tokens), text.head_dim)
        shared = (text.num_layers, rows, heads, s.tokens, text.head_dim)
        ints = jnp.zeros((rows, branches), jnp.int32)
        queue = Queue(ints + 1, ints, jnp.zeros((rows, branches, 2), jnp.uint32), ints > 0, ints)
        if self.sampling is None:
            ones = jnp.ones((rows, branches), jnp.float32)
            queue = queue._replace(sampling=OwnSampling(ones - 1, ones), most=ints)
        words = None
        if self.remembers:
            vocabulary = head_matrix(params, self.model.config).shape[-1]
            words = (
                jnp.full((rows, vocabulary), s.tokens, jnp.int32),
                jnp.zeros((rows, slots, vocabulary), bool),
            )
        return State(
            own=(jnp.zeros(own, dtype), jnp.zeros(own, dtype)),
            shared=(jnp.zeros(shared, dtype), jnp.zeros(shared, dtype)),
            queue=queue,
            order=ints,
            count=jnp.zeros(rows, jnp.int32),
            taken=jnp.zeros(rows, jnp.int32),
            first=ints,
            which=jnp.full((rows, slots), branches, jnp.int32),
            t=jnp.zeros((rows, slots), jnp.int32),
            token=jnp.zeros((rows, slots), jnp.int32),
            tokens=jnp.zeros((rows, branches, s.new_tokens), jnp.int32),
            logps=jnp.zeros((rows, branches, s.new_tokens), jnp.float32),
            length=ints,
            finished=ints > 0,
            words=words,
        )

    def shardings(self, state: Any) -> Any:
        """Where a State's arrays lie on the mesh: rows over ROW_AXES, kv heads over tensor."""
        mesh = self.mesh
        assert mesh is not None
        return jax.tree.map(
            lambda spec: NamedSharding(mesh, spec),
            self._specs(state),
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )

    def prefill(
        self, params: Any, state: State, inputs: dict, queue: Queue, row: Any, used: Any
    ) -> State:
        """The state with new questions in it, one for each part of the rows (P parts; 1 without a
        mesh). inputs: of P rows; queue: [P, N]; row int32 [P]: which row of its part; used bool
        [P]: whether there is a question at all.
        """
        model, s = self.model, self.shape
        found: Any = model.apply({"params": params}, inputs, method="prefill")
        hidden, shared = found
        last = jnp.maximum(queue.shared_len - 1, 0)
        hidden = jnp.take_along_axis(hidden, last[..., None], axis=1)  # [P, N, D]
        zero = jnp.zeros(queue.shared_len.shape, jnp.int32)
        words = seen = None
        if self.remembers:
            where = self._first_places(inputs["tokens"], params)
            seen = Seen(
                where[:, None] < queue.shared_len[..., None],
                jnp.zeros((*zero.shape, where.shape[-1]), bool),
            )
            words = (where, jnp.zeros((len(where), s.slots, where.shape[-1]), bool))
        first, logp = self._draw(params, hidden, queue.seeds, zero, seen, queue.sampling)
        ended = jnp.isin(first, self.eos)
        most = s.new_tokens if queue.most is None else queue.most
        decoded = queue.wanted & ~ended & (most > 1)
        # Stable: of equal priority the one that was asked for first.
        order = jnp.argsort(jnp.where(decoded, -queue.priority, 2**30), axis=1)
        count = decoded.sum(1)
        given = jnp.arange(s.slots) < count[:, None]
        which = jnp.where(given, order[:, : s.slots], s.branches)
        token = jnp.take_along_axis(first, jnp.minimum(which, s.branches - 1), axis=1)
        if words is not None:
            words = (words[0], _mark(words[1], token, given))
        tokens = jnp.zeros((*zero.shape, s.new_tokens), jnp.int32).at[..., 0].set(first)
        logps = jnp.zeros((*zero.shape, s.new_tokens), jnp.float32).at[..., 0].set(logp)
        new = State(
            own=None,
            shared=tuple(jnp.swapaxes(part, 2, 3) for part in shared),
            queue=queue,
            order=order,
            count=count,
            taken=given.sum(1),
            first=first,
            which=which,
            t=jnp.where(given, 1, 0),
            token=jnp.where(given, token, 0),
            tokens=tokens,
            logps=logps,
            length=jnp.where(queue.wanted & ~decoded, 1, 0),
            finished=queue.wanted & ended,
            words=words,
        )
        placed = self._place(state._replace(own=None), new, row, used)
        return placed._replace(own=state.own)

    def decode(self, params: Any, state: State, enough: Any) -> tuple[State, Any, Any, Any]:
        """The state after at most STEPS steps, fewer when all branches have ended or `enough` rows
        (int32) are without one; with (bool [Q]: rows that still decode, int32: the steps, int32:
        slots in use, summed over them).
        """

        def unfinished(carry: Any) -> Any:
            state, steps, _ = carry
            idle = jnp.sum(~self.busy(state))
            return (steps < STEPS) & (idle < self.shape.rows) & (idle < enough)

        def body(carry: Any) -> Any:
            state, steps, used = carry
            live = jnp.sum(state.which < self.shape.branches)
            return self._step(params, state), steps + 1, used + live

        state, steps, used = jax.lax.while_loop(
            unfinished, body, (state, jnp.int32(0), jnp.int32(0))
        )
        return state, self.busy(state), steps, used

    def busy(self, state: State) -> Any:
        """bool [Q]: rows with a branch in a slot. No branch waits beside a slot without one."""
        return jnp.any(state.which < self.shape.branches, axis=1)

    def _step(self, params: Any, state: State) -> State:
        """One token for every slot that has a branch, and the next branch for those that ended."""
        s, queue = self.shape, state.queue
        which, t = state.which, state.t
        live = which < s.branches
        branch = jnp.minimum(which, s.branches - 1)
        fed = jnp.maximum(t - 1, 0)  # the place of the last token among the branch's own
        position = jnp.take_along_axis(queue.first_position, branch, axis=1) + fed
        position = jnp.broadcast_to(position[:, None], (s.rows, 3, s.slots))
        shared_len = jnp.take_along_axis(queue.shared_len, branch, axis=1)
        with jax.named_scope("decode"):
            hidden, new = self.model.apply(
                {"params": params},
                state.token,
                position,
                state.shared,
                shared_len,
                state.own,
                fed,
                method="decode",
            )
            own = self._keep(state, new, fed)
        seeds = jnp.take_along_axis(queue.seeds, branch[..., None], axis=1)
        own_sampling, most = jax.tree.map(
            lambda x: jnp.take_along_axis(x, branch, axis=1), (queue.sampling, queue.most)
        )
        most = s.new_tokens if most is None else most
        words, seen = state.words, None
        if words is not None:
            seen = Seen(words[0][:, None] < shared_len[..., None], words[1])
        token, logp = self._draw(params, hidden, seeds, t, seen, own_sampling)
        ended = jnp.isin(token, self.eos)
        tokens = _write(state.tokens, which, t, token)
        logps = _write(state.logps, which, t, logp)
        t = t + 1
        stop = live & (ended | (t >= most))
        gone = jnp.where(stop, which, s.branches)
        if words is not None:
            words = (words[0], _mark(words[1], token, live))
        state = state._replace(
            own=own,
            t=t,
            token=token,
            tokens=tokens,
            logps=logps,
            length=_write(state.length, gone, t),
            finished=_write(state.finished, gone, ended),
            words=words,
        )
        return self._follow(state, stop)

    def _keep(self, state: State, new: Any, at: Any) -> Any:
        """state.own with the keys and values of the new tokens, each [L, Q, S, K, d], at `at`."""

        def local(own: Any, new: Any, at: Any) -> Any:
            return tuple(write_own(held, part, at) for held, part in zip(own, new, strict=True))

        if self.mesh is None:
            return local(state.own, new, at)
        held = self._specs(state).own
        parts = jax.tree.map(lambda spec: PartitionSpec(*spec[:4], spec[5]), held)
        specs = (held, parts, PartitionSpec(ROW_AXES))
        return jax.shard_map(local, mesh=self.mesh, in_specs=specs, out_specs=held)(
            state.own, new, at
        )

    def halt(self, state: State, stop: Any) -> State:
        """The state without the branches in the slots of bool `stop` [Q, S]: they are not finished,
        and have the length that they had."""
        stop = stop & (state.which < self.shape.branches)
        gone = jnp.where(stop, state.which, self.shape.branches)
        return self._follow(state._replace(length=_write(state.length, gone, state.t)), stop)

    def _follow(self, state: State, stop: Any) -> State:
        """The state whose slots that `stop` [Q, S] have the next branches of their rows' queues, or
        none, with the first token drawn."""
        branches = self.shape.branches
        place = state.taken[:, None] + jnp.cumsum(stop, axis=1) - 1
        follows = stop & (place < state.count[:, None])
        following = jnp.take_along_axis(state.order, jnp.minimum(place, branches - 1), axis=1)
        which = jnp.where(follows, following, jnp.where(stop, branches, state.which))
        first = jnp.take_along_axis(state.first, jnp.minimum(which, branches - 1), axis=1)
        token = jnp.where(follows, first, state.token)
        words = state.words
        if words is not None:
            words = (words[0], _mark(words[1] & ~stop[..., None], token, follows))
        return state._replace(
            taken=state.taken + follows.sum(1),
            which=which,
            t=jnp.where(follows, 1, jnp.where(which < branches, state.t, 0)),
            token=token,
            words=words,
        )

    def _draw(
        self,
        params: Any,
        hidden: Any,
        seeds: Any,
        t: Any,
        seen: Seen | None,
        own: OwnSampling | None,
    ) -> Any:
        head = head_matrix(params, self.model.config)
        logits = jnp.einsum(
            "brd,dv->brv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        vocabulary = self.model.config.text.vocab_size
        allowed = allowed_ids(vocabulary, logits.shape[-1], self.blocked)
        sampling = own if self.sampling is None else self.sampling
        assert sampling is not None  # the queue of such programs has it
        return draw(logits, allowed, seeds, t, sampling, seen)

    def _first_places(self, tokens: Any, params: Any) -> Any:
        """int32 [P, V]: where each id first stands among tokens [P, T]; T for nowhere."""
        size = head_matrix(params, self.model.config).shape[-1]
        count = tokens.shape[1]

        def one(row: Any) -> Any:
            return jnp.full(size, count).at[row].min(jnp.arange(count), mode="drop")

        return jax.vmap(one)(tokens)

    def _place(self, state: State, new: State, row: Any, used: Any) -> State:
        """Writes the questions of `new` [P, ...] into their rows of `state` [Q, ...]."""

        def local(state: State, new: State, row: Any, used: Any) -> State:
            def put(axis: int, old: Any, one: Any) -> Any:
                there = jax.lax.dynamic_index_in_dim(old, row[0], axis, keepdims=True)
                kept = jnp.where(used[0], one.astype(old.dtype), there)
                return jax.lax.dynamic_update_slice_in_dim(old, kept, row[0], axis)

            shared = tuple(put(1, o, n) for o, n in zip(state.shared, new.shared, strict=True))
            rest = jax.tree.map(
                lambda o, n: put(0, o, n), state._replace(shared=None), new._replace(shared=None)
            )
            return rest._replace(shared=shared)

        if self.mesh is None:
            return local(state, new, row, used)
        rows = PartitionSpec(ROW_AXES)
        old, fresh = self._specs(state), self._specs(new)
        return jax.shard_map(
            local, mesh=self.mesh, in_specs=(old, fresh, rows, rows), out_specs=old
        )(state, new, row, used)

    def _specs(self, state: Any) -> Any:
        """PartitionSpecs of a State's arrays."""
        assert self.mesh is not None
        heads = self.model.config.text.num_kv_heads
        tensor = "tensor" if heads % self.mesh.shape["tensor"] == 0 else None
        rows = PartitionSpec(ROW_AXES)
        cache = PartitionSpec(None, ROW_AXES, tensor, None, None)
        own = PartitionSpec(None, ROW_AXES, None, tensor, None, None)
        found = jax.tree.map(lambda _: rows, state)
        return found._replace(
            own=jax.tree.map(lambda _: own, state.own),
            shared=jax.tree.map(lambda _: cache, state.shared),
        )


def _write(into: Any, branch: Any, *rest: Any) -> Any:
    """into[q, branch[q, s], t[q, s]] = values[q, s], or without t; branches out of range are
    dropped. into: [Q, N, ...]; rest: (t, values) or (values,)."""

    def row(into: Any, *parts: Any) -> Any:
        return into.at[parts[:-1]].set(parts[-1], mode="drop")

    return jax.vmap(row)(into, branch, *rest)


def _mark(drawn: Any, token: Any, where: Any) -> Any:
    """drawn bool [..., V] with token [...] set, where `where` says so."""
    ids = jnp.arange(drawn.shape[-1])
    return drawn | ((ids == token[..., None]) & where[..., None])
