"""What `srpo plan` could try: the questions that fill the rows, the legal meshes, and the estimates
by which hopeless candidates are left out before anything is compiled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from srpo_jax.config.fields import FIELDS, Config, arguments
from srpo_jax.distributed.accelerators import Slice
from srpo_jax.distributed.mesh import abstract_mesh
from srpo_jax.distributed.sharding import bytes_per_device, param_shardings, row_shards
from srpo_jax.errors import UserError
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.flops import Work, patches_of
from srpo_jax.models.inputs import EncodedPrompt
from srpo_jax.pack.packing import Budgets, lay_out_within
from srpo_jax.pack.tree import Branch, Tree
from srpo_jax.pack.tree_layout import TreeSizes, choose_pairs, visible_pairs

MAX_TENSOR = 16  # larger ones are compiled only when --meshes asks for them


@dataclasses.dataclass(frozen=True)
class Question:
    """What a question is taken to look like: an invented workload, to be replaced by yours.

    branch_tokens: mean length of a branch; those after the prompt have 5/3 of it, those after the
    last step 1/3, as what is left of a path gets shorter. How many there are at each of `steps`
    branch points is explore.branches. fill: share of a row's tokens that trees take (0.92 at rows
    as long as the mean tree, simulated; more in longer rows).
    """

    image_tokens: int = 1024
    prompt_tokens: int = 64
    steps: int = 6
    step_tokens: int = 40
    branch_tokens: int = 120
    fill: float = 0.92

    def __post_init__(self):
        counts = (self.prompt_tokens, self.steps, self.step_tokens, self.branch_tokens)
        if min(counts) < 1 or self.image_tokens < 0 or not 0 < self.fill <= 1:
            raise UserError("--question: counts must be positive, and fill in (0, 1]")


class Rows(NamedTuple):
    """The rows of a batch: their sizes, and on average how much of a question stands in one."""

    budgets: Budgets
    questions: float  # per row
    work: Work  # per row, without padding
    subtree_ends: tuple[np.ndarray, ...]  # of the parts that one question makes

    def blocked_pairs(self, block: int) -> float:
        """Query-key pairs per row in the blocks of block x block pairs that hold a visible one,
        which is what a block-sparse kernel computes.
        """
        pairs = 0
        for ends in self.subtree_ends:
            blocks = -(-len(ends) // block)
            last = np.zeros(blocks * block, np.int64)
            last[: len(ends)] = ends
            # The queries that see a key of block k begin in k and end before the largest end.
            seen = -(-last.reshape(blocks, block).max(axis=1) // block) - np.arange(blocks)
            pairs += int(seen.sum()) * block * block
        return self.questions * pairs


class Candidate(NamedTuple):
    """data, fsdp, tensor: the mesh. rows: of the global batch."""

    data: int
    fsdp: int
    tensor: int
    rows: int
    remat: str

    @property
    def mesh(self) -> tuple[int, int, int]:
        return self.data, self.fsdp, self.tensor

    @property
    def name(self) -> str:
        return (
            f"data={self.data} fsdp={self.fsdp} tensor={self.tensor} rows={self.rows} "
            f"remat={self.remat}"
        )


def rows_of(cfg: Config, config: ModelConfig, question: Question, row_tokens: int) -> Rows:
    """Rows of `row_tokens` tokens, full of such questions.

    One such tree is really laid out, with the config's pairs and objective, so that targets,
    segments, sequences, pairs and visible query-key pairs are those that training would see.
    The budgets hold as much of everything as a completely full row has.
    """
    tree = _tree(cfg, config, question)
    pairs = choose_pairs(tree, **arguments(choose_pairs, cfg.objective))
    unit = config.vision.patch_unit
    large = Budgets(row_tokens, *[1 << 30] * 5)
    parts = lay_out_within(tree, pairs, large, **arguments(lay_out_within, cfg.objective))
    total = TreeSizes(*(sum(sizes) for sizes in zip(*(part.sizes for part in parts))))
    scale = row_tokens / total.tokens
    least = np.max([tuple(part.sizes) for part in parts], axis=0)
    full = TreeSizes(*(int(max(math.ceil(n * scale), m)) for n, m in zip(total, least)))
    full = full._replace(tokens=row_tokens)
    budgets = Budgets.fit([full], row_tokens=row_tokens, patch_multiple=unit)
    per_picture = total.patches / len(parts)
    # A patch sees its tile, or the whole picture where there are none.
    seen = unit if config.vision.tile_length else per_picture
    work = Work(
        tokens=total.tokens,
        pairs=sum(visible_pairs(part.subtree_end) for part in parts),
        targets=total.targets,
        patches=total.patches,
        patch_pairs=total.patches * seen,
    )
    questions = question.fill * scale
    ends = tuple(part.subtree_end for part in parts)
    return Rows(budgets, questions, work.times(questions), ends)


def _tree(cfg: Config, config: ModelConfig, question: Question) -> Tree:
    fresh = iter(range(1 << 30))  # tokens that never repeat: no branch shares any with another

    def text(count: float) -> np.ndarray:
        return np.fromiter((next(fresh) for _ in range(max(1, round(count)))), np.int32)

    unit = config.vision.patch_unit
    patches = math.ceil(patches_of(config.vision, question.image_tokens) / unit) * unit
    tokens = text(question.image_tokens + question.prompt_tokens)
    prompt = EncodedPrompt(
        tokens=tokens,
        positions=np.tile(np.arange(len(tokens), dtype=np.int32), (3, 1)),
        next_position=len(tokens),
        image_index=np.full(len(tokens), -1, np.int32),
        features=question.image_tokens,
        vision={"patches": np.zeros((patches, 0), np.float32)},
    )
    points = question.steps if cfg.objective.branch_points == "all" else 1
    shares = np.linspace(5 / 3, 1 / 3, question.steps)
    branches = tuple(
        Branch(at=at, tokens=text(question.branch_tokens * shares[at]), safe=bool(k % 2))
        for at in range(points)
        for k in range(cfg.explore.branches)
    )
    pieces = tuple(text(question.step_tokens) for _ in range(question.steps + 1))
    return Tree("a question of this size", prompt, pieces, branches)


def candidates(
    cfg: Config,
    params: Any,
    where: Slice,
    *,
    meshes: Sequence[tuple[int, int, int]] = (),
    rows: Sequence[int] = (),
    remats: Sequence[str] = (),
) -> tuple[list[Candidate], list[str]]:
    """Returns (the legal candidates, why others are not). An empty argument stands for what is
    worth trying.

    meshes: by default tensor 1, 2, 4, ... up to MAX_TENSOR, each with the fewest replicas (data)
    that leave parts which the parameters divide into. rows: by default pack.rows, and one and two
    rows per device. remats: by default every policy there is.
    Errors: UserError when what was asked for is not legal, or nothing is.
    """
    devices = where.devices
    asked = bool(meshes)
    by_tensor = [[mesh] for mesh in meshes] or [
        [(data, devices // tensor // data, tensor) for data in _powers(devices // tensor)]
        for tensor in _powers(MAX_TENSOR)
        if devices % tensor == 0
    ]
    counts = rows or sorted({cfg.pack.rows, devices, 2 * devices})
    found, refused = [], []
    for choices in by_tensor:
        why = [_refusal(params, mesh, devices) for mesh in choices]
        if all(why):
            refused.append(why[0])
            continue
        mesh = choices[why.index("")]
        unit = row_shards(abstract_mesh(mesh)) * cfg.train.accumulate
        fitting = [count for count in counts if count % unit == 0]
        if not fitting:
            refused.append(
                f"mesh {'*'.join(map(str, mesh))}: rows must be a multiple of {unit} (row shards x "
                f"train.accumulate), not {', '.join(map(str, counts))}"
            )
        found += [
            Candidate(*mesh, count, remat)
            for count in fitting
            for remat in remats or FIELDS["model.remat"].rule.words
        ]
    if not found or (asked and refused):
        raise UserError(f"no legal plan for {where.name}: {refused[0]}")
    return found, refused


def _powers(most: int) -> list[int]:
    """The powers of two that divide `most`, ascending."""
    return [2**k for k in range(most.bit_length()) if most % 2**k == 0]


def _refusal(params: Any, mesh: tuple[int, int, int], devices: int) -> str:
    """Why the parameters cannot lie on such a mesh; "" if they can."""
    if math.prod(mesh) != devices:
        return f"mesh {'*'.join(map(str, mesh))} is not {devices} devices"
    try:
        param_shardings(params, abstract_mesh(mesh))
    except UserError as error:
        return str(error)
    return ""


def least_memory(
    cfg: Config,
    config: ModelConfig,
    candidate: Candidate,
    budgets: Budgets,
    state: int,
    grads: int,
    *,
    tower: bool,
) -> int:
    """Bytes that a device needs at the very least; what does not fit by this is not compiled.

    state + the larger of (gradients) and (activations kept for the backward pass + head): the
    gathered head [D, V] in the compute dtype and one chunk of float32 logits.
    """
    text = config.text
    width = jnp.dtype(cfg.model.dtype).itemsize
    rows = candidate.rows // (candidate.data * candidate.fsdp * cfg.train.accumulate)
    kept = kept_elements(config, candidate, budgets, tower=tower)
    vocab = text.padded_vocab // candidate.tensor
    head = text.hidden_size * vocab * width + rows * min(512, budgets.targets) * vocab * 4
    return state + max(grads, rows * kept * width + head)


def kept_elements(
    config: ModelConfig, candidate: Candidate, budgets: Budgets, *, tower: bool
) -> int:
    """Numbers that the layers keep of a row for the backward pass, in the device's memory.

    Per layer and token, heads and F split over `tensor`:
        none       what the products and attention read and make: 3 D + (2 H + 2 K) d + 3 F
        dots       its input, and what the products make:         2 D + (H + 2 K) d + 2 F
        attention  its input, and the result of attention:        D + H d
        full       its input:                                     D
        others     nothing, as far as this knows (offload keeps its input in the host's memory)
    Of the vision tower: the input of each block, and nothing where no gradient goes through them
    (`tower` is False).
    """
    text, vision, split = config.text, config.vision, candidate.tensor
    width = text.hidden_size
    heads = text.num_heads * text.head_dim // split
    keys = 2 * text.num_kv_heads * text.head_dim // split
    ffn = text.intermediate_size // split
    kept = {
        "none": 3 * width + 2 * heads + keys + 3 * ffn,
        "dots": 2 * width + heads + keys + 2 * ffn,
        "attention": width + heads,
        "full": width,
    }
    if candidate.remat not in kept:
        return 0
    blocks = vision.depth * vision.hidden_size * budgets.patches if tower else 0
    return text.num_layers * budgets.tokens * kept[candidate.remat] + blocks


def trained_bytes(params: Any, shardings: Any, trainable: Sequence[str]) -> int:
    """Bytes of the gradients, which have the parameters' dtype, on one device."""
    leaves, shards = by_path(params), by_path(shardings)
    return bytes_per_device(
        *({path: tree[path] for path in trainable} for tree in (leaves, shards))
    )
