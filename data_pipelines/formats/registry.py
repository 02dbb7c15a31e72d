"""The foreign formats by name. A new one is one file and one line here; a user's own is a class."""

from __future__ import annotations

import itertools
import pathlib

from srpo_jax.data_pipelines.exchange.base import Format, Opened
from srpo_jax.data_pipelines.formats.beavertails_v import BeaverTailsV
from srpo_jax.data_pipelines.formats.llama_factory import LlamaFactory, LlamaFactoryAlpaca
from srpo_jax.data_pipelines.formats.llava import Llava
from srpo_jax.data_pipelines.formats.mis import Mis
from srpo_jax.data_pipelines.formats.mmpr import Mmpr
from srpo_jax.data_pipelines.formats.ms_swift import MsSwift
from srpo_jax.data_pipelines.formats.mssbench import MssBench
from srpo_jax.data_pipelines.formats.records import Records
from srpo_jax.data_pipelines.formats.rlhf_v import RlhfV
from srpo_jax.data_pipelines.formats.rpo import Rpo
from srpo_jax.data_pipelines.formats.siuo import Siuo
from srpo_jax.data_pipelines.formats.spa_vl import SpaVl
from srpo_jax.data_pipelines.formats.srpo import Srpo
from srpo_jax.data_pipelines.formats.step_dpo import StepDpo
from srpo_jax.data_pipelines.formats.trl import Trl
from srpo_jax.data_pipelines.formats.trl_stepwise import TrlStepValues, TrlStepwise
from srpo_jax.data_pipelines.formats.vlguard import VlGuard
from srpo_jax.errors import UserError, one_line

# In the order in which they are asked whether a file is theirs: the first that says so has it.
FORMATS: dict[str, type[Format]] = {
    "srpo": Srpo,
    "records": Records,
    "trl_stepwise": TrlStepwise,
    "trl_step_values": TrlStepValues,
    "step_dpo": StepDpo,
    "ms_swift": MsSwift,
    "trl": Trl,
    "llama_factory": LlamaFactory,
    "llama_factory_alpaca": LlamaFactoryAlpaca,
    "rpo": Rpo,
    "beavertails_v": BeaverTailsV,
    "rlhf_v": RlhfV,
    "vlguard": VlGuard,
    "mis": Mis,
    "siuo": Siuo,
    "mssbench": MssBench,
    "spa_vl": SpaVl,
    "mmpr": Mmpr,
    "llava": Llava,
}


def make(kind: type[Format] | Format, field: str) -> Format:
    """An instance of a class of formats. field: the option that named it, for the message."""
    if isinstance(kind, type) and issubclass(kind, Format):
        return kind()
    raise UserError(
        f"{field}: {one_line(kind, 80)} is no subclass of "
        "srpo_jax.data_pipelines.exchange.base.Format"
    )


def detect(path: pathlib.Path, part: str = "") -> tuple[Format, Opened]:
    """The format of a file, by its name or its first row, and the file opened by it.

    Errors: UserError when it is none that is known, and for a file that cannot be read.
    """
    for kind in FORMATS.values():
        if kind.knows_path(path):
            found = kind()
            return found, found.open(path, part)
    opened = next(iter(FORMATS.values()))().open(path)
    first = next((row for row in opened.rows if not row.error), None)
    if first is None:
        raise UserError(f"{path}: holds no row that can be read, so its format cannot be told")
    for kind in FORMATS.values():
        found = kind()
        if found.matches(first.data):
            return found, found.open(path, part)
    names = ", ".join(itertools.islice(first.data, 12))
    raise UserError(
        f"{path}: no known format has rows of the fields {one_line(names, 200)}; name it with "
        f"--from, one of {', '.join(FORMATS)}, or your own as module:Class"
    )
