"""The policy as exploration and evaluation use it: model, parameters, processor, identity."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.images import image_size, load_record_images
from srpo_jax.data_pipelines.path_formats.base import PathFormat
from srpo_jax.data_pipelines.path_formats.tokens import as_read_back, tokenize_reference
from srpo_jax.data_pipelines.prompt import Prompt
from srpo_jax.data_pipelines.records import Record, RecordError
from srpo_jax.distributed import compile_cache
from srpo_jax.distributed.mesh import over_processes
from srpo_jax.distributed.sharding import (
    bytes_per_device,
    fetch,
    make_constrain,
    param_shardings,
    row_shards,
)
from srpo_jax.errors import UserError
from srpo_jax.inference.engine.requests import Sample
from srpo_jax.inference.prompting import Asking, load_asking
from srpo_jax.inference.sampling_mesh import (
    Shape,
    bytes_per_row,
    fixed_bytes,
    memory_here,
    rows_that_fit,
    sampling_mesh,
    slots_that_pay,
)
from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.blocks.config import ModelConfig
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.hf.weights_digest import policy_digest
from srpo_jax.models.inputs import EncodedPrompt
from srpo_jax.models.policy_model import PolicyModel, abstract_params
from srpo_jax.models.registry import load_model_config


@dataclass(frozen=True)
class Policy:
    """What is needed to sample. digest: 16 hex digits that name config and weights. asking: how it
    is asked; by name, with tokenizer, template and path format, in prompt_digest.
    """

    model: PolicyModel
    params: Any
    asking: Asking
    digest: str
    mesh: jax.sharding.Mesh | None

    @property
    def format(self) -> PathFormat:
        """How paths are written and read."""
        return self.asking.form

    @property
    def opened(self) -> bool:
        """Whether every prompt ends with the opening of the path format."""
        return self.processor.opened

    @property
    def processor(self) -> Processor:
        """The text and image side of the policy."""
        return self.asking.encoder.processor

    @property
    def prompt(self) -> Prompt:
        """What it is told besides the question."""
        return self.asking.encoder.prompt

    @property
    def prompt_digest(self) -> str:
        """16 hex digits: see Asking."""
        return self.asking.digest

    def encode(self, record: Record) -> EncodedPrompt:
        """The record's pictures and question as model inputs, with all that the policy is told
        around them. UserError names the record."""
        with _naming(record):
            encoder = self.asking.encoder.of_category(record.category)
            return encoder.encode(record.question, load_record_images(record))

    def sizes(self, record: Record) -> tuple[int, int]:
        """(tokens, patches) of what `encode` gives; of the record's pictures only the headers are
        looked at. Errors as there, but for damaged pixels."""
        with _naming(record):
            what = f"record {record.id!r}"
            sizes = [image_size(path, what=what) for path in record.image_paths()]
            grids = [self.processor.images.grid(*size) for size in sizes]
            encoder = self.asking.encoder.of_category(record.category)
            return encoder.sizes(record.question, grids)

    def reference(self, record: Record) -> tuple[Record, list[np.ndarray]]:
        """(the record with the texts of its reference path as the tokens read, the path as int32
        pieces: n steps, then the reply with its end token).
        """
        with _naming(record):
            record = as_read_back(record, self.processor, self.format)
            return record, tokenize_reference(record, self.processor, self.format, self.opened)

    def forced_start(self, text: str) -> np.ndarray:
        """int32 [m]: the tokens of a text that a turn is made to begin with; [0] for no text."""
        return np.asarray(self.processor.encode(text) if text else [], np.int32)

    @property
    def path_format(self) -> dict[str, Any]:
        """The settings by which this policy's turns are written and read."""
        return self.format.settings()

    def read_turn(
        self, steps: Sequence[str], text: str, *, finished: bool
    ) -> tuple[tuple[str, ...], str | None, str]:
        """(steps, reply, status) of what a turn says behind the steps that it was given.

        steps: of the reference path, which the turn begins with; text: what was sampled then.
        """
        read = self.format.parse_behind(steps, text, finished=finished, opened=self.opened)
        return read.steps, read.reply, read.status

    def branch(
        self, steps: Sequence[str], at: int, k: int, tokens: Sequence[int], sample: Sample
    ) -> dict[str, Any]:
        """A branch in the form of the tree schema. steps: of the reference path before it. tokens:
        those of the sample, behind a forced start if there was one.
        """
        text = self.processor.decode(tokens, after_text=at > 0)
        own, reply, status = self.read_turn(steps, text, finished=sample.finished)
        return {
            "at": at,
            "k": k,
            "parent": None,
            "tokens": list(tokens),
            "text": text,
            "finished": sample.finished,
            "logp": sample.logp,
            "status": status,
            "step_texts": list(own),
            "reply_text": reply,
        }

    @property
    def together(self) -> bool:
        """Whether several processes sample on one mesh: then all make the same calls."""
        return over_processes(self.mesh)

    def rows(self, wanted: int, most: int, shape: Shape) -> int:
        """How many questions to sample at once: `wanted`, or as many as pay and fit (0); at most
        `most` are to come; rounded up to what the mesh divides. shape: of the sampler's memory.
        """
        wanted = wanted or _fitting_rows(self, shape)
        return rows_over(self.mesh, min(wanted, most))

    def budgets(self, records: Iterable[Record], paths: Iterable[int]) -> tuple[int, int]:
        """(tokens, patches) that hold every record's question and a path of `paths[i]` tokens.

        This looks at the header of every picture, so one that is missing or no picture is named
        before hours of work.
        """
        unit = self.processor.config.vision.patch_unit
        tokens, patches = 1, unit
        for record, path in zip(records, paths, strict=True):
            own, shown = self.sizes(record)
            tokens, patches = max(tokens, own + path), max(patches, shown)
        return -(-tokens // 16) * 16, patches


@contextlib.contextmanager
def _naming(record: Record):
    """In a `with`: an error that does not name the record gets its name in front."""
    try:
        yield
    except RecordError:
        raise
    except UserError as error:
        raise RecordError(f"record {record.id!r}: {error}") from error


def load_policy(
    cfg: Config,
    *,
    model_dir: str | os.PathLike | None = None,
    params: Any = None,
    alone: bool = False,
) -> Policy:
    """The policy in `model_dir` (default: cfg.model.path), in the computing dtype.

    params: use these instead of the folder's weights; they move to where they are needed.
    On several devices the parameters are laid out over the mesh that explore.mesh says: of all
    devices of all processes, or of this process's own if it works `alone`.
    """
    folder = os.fspath(model_dir or local_folder(cfg.model.path))
    if not folder:
        raise UserError("config.model.path is empty: name the HF directory of the policy")
    # First, as it names a folder that is none as such.
    network = load_network(cfg, folder, params=params, alone=alone)
    digest = policy_digest(folder) if params is None else params_digest(params, folder)
    model, params, mesh = network
    return Policy(model, params, load_asking(cfg, folder, model.config.family), digest, mesh)


class Network(NamedTuple):
    """A model with its parameters, laid out over the mesh if there is one."""

    model: PolicyModel
    params: Any
    mesh: jax.sharding.Mesh | None

    def rows(self, wanted: int) -> int:
        """How many questions to compute at once: `wanted`, rounded up to what the mesh divides."""
        return rows_over(self.mesh, wanted)


def rows_over(mesh: jax.sharding.Mesh | None, wanted: int) -> int:
    """`wanted`, rounded up to what the axes of the mesh that rows are spread over divide."""
    shards = row_shards(mesh)
    return -(-wanted // shards) * shards


def _fitting_rows(policy: Policy, shape: Shape) -> int:
    """See rows_that_fit; all processes of one mesh have the same answer."""
    config, mesh = policy.processor.config, policy.mesh
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    itemsize = jnp.dtype(policy.model.dtype).itemsize
    split = {"tensor": tensor, "itemsize": itemsize}
    return rows_that_fit(
        bytes_per_row(config.text, shape, **split),
        shape.slots,
        weights=bytes_per_device(policy.params) + fixed_bytes(config, shape, **split),
        memory=memory_here(agreed=policy.together),
        bound=slots_that_pay(),
        replicas=row_shards(mesh),
    )


def load_network(
    cfg: Config, folder: str | pathlib.Path, *, params: Any = None, alone: bool = False
) -> Network:
    """The model in `folder` in the computing dtype; params, alone: as of load_policy. What it
    compiles is kept as train.compilation_cache says."""
    compile_cache.use(cfg.train.compilation_cache)
    config = load_model_config(folder, cfg.model.family)
    dtype, shardings = jnp.dtype(cfg.model.dtype), None
    mesh = sampling_mesh(cfg, config, alone=alone)
    if mesh is not None:
        shardings = param_shardings(abstract_params(config, dtype), mesh)
    if params is None:
        params = load_params(folder, config, dtype=dtype, shardings=shardings)
    elif shardings is not None:
        params = jax.device_put(params, shardings)  # those that lie there already stay
    return Network(sampling_model(cfg, config, mesh), params, mesh)


def sampling_model(cfg: Config, config: ModelConfig, mesh: jax.sharding.Mesh | None) -> PolicyModel:
    """The network as it samples on this mesh."""
    options: dict[str, Any] = {} if mesh is None else {"constrain": make_constrain(mesh)}
    dtype = jnp.dtype(cfg.model.dtype)
    attend = Attend(cfg.model.attention, mesh)
    return PolicyModel(config, dtype=dtype, param_dtype=dtype, attend=attend, **options)


def params_digest(params: Any, folder: str | os.PathLike) -> str:
    """Hex sha256[:16] over the config.json in `folder`, and paths, dtypes, shapes and bytes of
    parameters that lie in no folder."""
    digest = hashlib.sha256(pathlib.Path(folder, "config.json").read_bytes())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(fetch(leaf))
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()[:16]


def choose_questions(records: Sequence[Record], count: int, *, seed: int) -> list[Record]:
    """`count` of the records (0 or more than there are: all), in their own order.

    A function of (records, count, seed). If every record says whether it is risky, half of them
    are risky and half benign, as far as there are enough.
    """
    if count <= 0 or count >= len(records):
        return list(records)
    order = list(range(len(records)))
    random.Random(f"questions {seed}").shuffle(order)
    if all(record.risky is not None for record in records):
        risky = [i for i in order if records[i].risky]
        benign = [i for i in order if not records[i].risky]
        half = min(max(count // 2, count - len(benign)), len(risky))
        order = risky[:half] + benign[: count - half]
    return [records[i] for i in sorted(order[:count])]
