"""Four ways to compute the same loss of a question, all through the project's own objective.

tree    one packed row: each token of the question once (srpo_jax/pack)
unique  one plain causal row per distinct sequence: the reference path and each branch after its
        prefix
pairs   two plain causal rows per pair, as pairwise trainers make them, `PAIRS` pairs at a time with
        the gradients added up; the reference path is one more row of the last micro-batch

A batch is {"inputs", "targets", "loss"}: what the model reads, which tokens are predicted (both
[M, R, ...], M micro-batches of R rows that are computed one after the other inside one forward and
backward pass), and the arrays of srpo_loss for all M * R rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.inputs import causal_row, pad_rows
from srpo_jax.models.policy_model import PolicyModel, head_matrix
from srpo_jax.pack.packing import Budgets, make_batch
from srpo_jax.pack.tree import Tree
from srpo_jax.pack.tree_layout import Pair, choose_pairs, layout_tree
from srpo_jax.train.losses.objective import Objective, srpo_loss
from srpo_jax.train.losses.target_logps import target_logps
from studies.speed import workload
from studies.speed.timing import Program
from studies.speed.workload import Shape, Width

SEED = 1  # gives the default shape 80 pairs: 10 whole micro-batches (the mean over seeds is 87)
PAIRS = 8  # of a micro-batch: 16 rows
ROW_MULTIPLE = 16  # rows are padded to the longest row of the question, rounded up to this
TARGETS = ("target_pos", "target_parent")


class Variant(NamedTuple):
    """batches: whose losses and gradients add up to the question's. Token counts of all of them."""

    batches: list[dict]
    rows: int
    real_tokens: int
    padded_tokens: int


def tree_variant(trees: Sequence[Tree], pairs: Sequence[list[Pair]], **reading: str) -> Variant:
    """Every tree in a row of its own, padded as `srpo train` does it. reading: for layout_tree."""
    layouts = [layout_tree(tree, chosen, **reading) for tree, chosen in zip(trees, pairs)]
    budgets = Budgets.fit([x.sizes for x in layouts])
    batch = make_batch([[layout] for layout in layouts], budgets)
    inputs = set(
        pad_rows([causal_row(trees[0].prompt)], tokens=budgets.tokens, patches=budgets.patches)
    )
    made = {
        "inputs": {name: x[None] for name, x in batch.items() if name in inputs},
        "targets": {name: batch[name][None] for name in TARGETS},
        "loss": {name: x for name, x in batch.items() if name not in inputs | set(TARGETS)},
    }
    return Variant(
        [made], len(layouts), sum(x.sizes.tokens for x in layouts), len(layouts) * budgets.tokens
    )


class Row(NamedTuple):
    """The prompt, then `tokens`, of which those from `skip` on are predicted."""

    tree: Tree
    tokens: np.ndarray
    skip: int = 0
    ref_weight: float = 0.0

    @property
    def length(self) -> int:
        return len(self.tree.prompt.tokens) + len(self.tokens)


Group = tuple[list[Row], list[tuple[int, int, float]]]  # rows, and pairs of them with weights


def unique_groups(tree: Tree, pairs: Sequence[Pair]) -> list[Group]:
    """One group: every sequence in a row of its own, once."""
    used = sorted({k for chosen, rejected, _ in pairs for k in (chosen, rejected)})
    place = {k: number for number, k in enumerate(used, start=1)}
    rows = [_reference(tree)] + [_branch(tree, k) for k in used]
    return [(rows, [(place[chosen], place[rejected], w) for chosen, rejected, w in pairs])]


def pair_groups(tree: Tree, pairs: Sequence[Pair]) -> list[Group]:
    """Two rows per pair, micro-batches of PAIRS pairs; the last has the reference path as well."""
    groups = []
    for begin in range(0, len(pairs), PAIRS):
        group = pairs[begin : begin + PAIRS]  # the last one may be smaller: another shape
        rows = [_branch(tree, k) for pair in group for k in pair[:2]]
        groups.append((rows, [(2 * i, 2 * i + 1, pair[2]) for i, pair in enumerate(group)]))
    groups[-1][0].append(_reference(tree))
    return groups


def count_tokens(groups: Sequence[Group]) -> tuple[int, int]:
    """(tokens without padding, rows times the length of a row)."""
    rows = [row for rows, _ in groups for row in rows]
    return sum(row.length for row in rows), len(rows) * _longest(rows)


def rows_variant(groups: Sequence[Group], at_once: int) -> Variant:
    """A batch per group, computed at most `at_once` rows at a time."""
    rows = [row for group, _ in groups for row in group]
    batches = [rows_batch(group, pairs, _longest(rows), at_once) for group, pairs in groups]
    padded = sum(int(np.prod(batch["inputs"]["tokens"].shape)) for batch in batches)
    return Variant(batches, len(rows), count_tokens(groups)[0], padded)


def _reference(tree: Tree) -> Row:
    return Row(tree, tree.reference, ref_weight=1.0)


def _branch(tree: Tree, k: int) -> Row:
    prefix = tree.prefix(tree.branches[k].at)
    return Row(tree, np.concatenate([prefix, tree.branches[k].tokens]), len(prefix))


def _longest(rows: Sequence[Row]) -> int:
    return -(-max(row.length for row in rows) // ROW_MULTIPLE) * ROW_MULTIPLE


def rows_batch(
    rows: Sequence[Row], pairs: Sequence[tuple[int, int, float]], tokens: int, at_once: int
) -> dict:
    """A batch of plain causal rows. pairs: (row of the chosen, row of the rejected, weight)."""
    groups = -(-len(rows) // at_once)
    at_once = -(-len(rows) // groups)  # as even as it goes
    count = groups * at_once  # rows; a few at the end may be empty
    made = [causal_row(row.tree.prompt, row.tokens) for row in rows]
    nothing = {
        name: x[..., :0] if name in ("positions", "tokens", "subtree_end", "image_index") else x[:0]
        for name, x in made[0].items()
    }
    patches = max(4, *(len(row["patches"]) for row in made))
    inputs = pad_rows(made + [nothing] * (count - len(rows)), tokens=tokens, patches=patches)
    targets = max(len(row.tokens) - row.skip for row in rows)
    positions = np.zeros((count, targets), np.int32)
    segments = np.full((count, targets), count, np.int32)
    for r, row in enumerate(rows):
        begin = len(row.tree.prompt.tokens) + row.skip
        own = len(row.tokens) - row.skip
        positions[r, :own] = begin + np.arange(own)
        segments[r, :own] = r
    chosen, rejected, weight = zip(*pairs)

    def per_row(values) -> np.ndarray:
        return np.asarray([*values, *[0] * (count - len(rows))], np.float32)[None]

    def split(arrays: dict) -> dict:
        return {name: x.reshape(groups, at_once, *x.shape[1:]) for name, x in arrays.items()}

    return {
        "inputs": split(inputs),
        "targets": split({"target_pos": positions, "target_parent": np.maximum(positions - 1, 0)}),
        "loss": {
            "target_segment": segments.reshape(1, -1),
            "seq_segments": np.eye(count, dtype=np.float32)[None],
            "seq_len": np.maximum(per_row(len(row.tokens) - row.skip for row in rows), 1),
            "ref_weight": per_row(row.ref_weight for row in rows),
            "pair_chosen": np.asarray([chosen], np.int32),
            "pair_rejected": np.asarray([rejected], np.int32),
            "pair_weight": np.asarray([weight], np.float32),
        },
    }


def make_loss(model: PolicyModel, objective: Objective) -> Callable:
    """(params, batch) -> the loss of a batch of any of the variants, float32."""

    def loss(params: dict, batch: dict) -> jax.Array:
        head = head_matrix(params, model.config)

        def logps(micro: tuple[dict, dict]) -> jax.Array:
            inputs, targets = micro
            hidden = model.apply({"params": params}, inputs)
            return target_logps(hidden, head, {"tokens": inputs["tokens"], **targets})

        micro = (batch["inputs"], batch["targets"])
        if len(batch["targets"]["target_pos"]) == 1:  # no loop for one
            logp = logps(jax.tree.map(lambda x: x[0], micro))
        else:
            logp = jax.lax.map(logps, micro)
        rows = len(batch["loss"]["seq_len"])
        return srpo_loss(logp.reshape(rows, -1), batch["loss"], objective)[0]

    return loss


def as_arrays(batch: dict) -> dict:
    """The batch on the device, so that a step does not copy it."""
    return jax.tree.map(jnp.asarray, batch)


def build(
    shape: Shape, width: Width, names: tuple[str, ...], *, seed: int = SEED, remat: str = "full"
):
    """({name: (Variant, loss function)}, ModelConfig, number of pairs)."""
    config = workload.model_config(width)
    tree = workload.random_question(shape, config, seed)
    pairs = choose_pairs(tree)
    eight = choose_pairs(tree, pairing="rpo_code", max_pairs=8)
    makers = {
        "tree": lambda: tree_variant([tree], [pairs]),
        "tree-dense": lambda: tree_variant([tree], [pairs]),
        "pairs": lambda: rows_variant(pair_groups(tree, pairs), 2 * PAIRS + 1),
        "unique": lambda: rows_variant(unique_groups(tree, pairs), 8),
        "8-pairs": lambda: rows_variant(pair_groups(tree, eight), 2 * PAIRS + 1),
        "8-tree": lambda: tree_variant([tree], [eight]),
    }
    impl = {"tree": "block", "8-tree": "block", "tree-dense": "xla"}
    made = {}
    for name in names:
        if name not in makers:
            raise UserError(f"no variant {name!r}; there are {', '.join(makers)}")
        model = PolicyModel(config, remat=remat, attend=Attend(impl.get(name, "auto")))
        made[name] = (makers[name](), make_loss(model, Objective()))
    return made, config, len(pairs)


def program(name: str, variant: Variant, loss: Callable) -> Program:
    """The variant as what timing.py calls."""
    sizes = [np.size(batch["inputs"]["tokens"]) for batch in variant.batches]
    shares = [size / sum(sizes) for size in sizes]
    return Program(name, loss, [as_arrays(b) for b in variant.batches], shares)
