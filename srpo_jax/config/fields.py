"""The whole config, which is its sections (sections.py) in one, and the list of all fields."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from srpo_jax.config.dialogue_sections import FormatSettings, PromptSettings
from srpo_jax.config.judging_sections import ArbiterSettings, JudgeSettings
from srpo_jax.config.rules import Rule, setting
from srpo_jax.config.sampling_sections import (
    EvalSettings,
    ExploreSettings,
    RoundsSettings,
    ServeSettings,
)
from srpo_jax.config.sections import (
    DataSettings,
    LoraSettings,
    MeshSettings,
    ModelSettings,
    ObjectiveSettings,
    PackSettings,
    ProcessesSettings,
    TrainSettings,
)


@dataclass(frozen=True)
class Config:
    """A whole config. Immutable; `dataclasses.replace` makes another."""

    name: str = setting(
        "srpo",
        "name of the run: shown in the report and in the model card",
        required=True,
        decides=False,
    )
    seed: int = setting(
        0, "all randomness is a function of (seed, step)", low=0, high=2**31 - 1, decides=True
    )
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    prompt: PromptSettings = PromptSettings()
    format: FormatSettings = FormatSettings()
    explore: ExploreSettings = ExploreSettings()
    arbiter: ArbiterSettings = ArbiterSettings()
    judge: JudgeSettings = JudgeSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    pack: PackSettings = PackSettings()
    train: TrainSettings = TrainSettings()
    lora: LoraSettings = LoraSettings()
    mesh: MeshSettings = MeshSettings()
    processes: ProcessesSettings = ProcessesSettings()
    eval: EvalSettings = EvalSettings()
    rounds: RoundsSettings = RoundsSettings()
    serve: ServeSettings = ServeSettings()

    def to_dict(self) -> dict[str, Any]:
        """{"arbiter": {"kind": ...}, ...}: plain values, names in alphabetical order throughout,
        as ConfigDict.to_dict gives them. Ledgers and config.json hold this."""
        return _sorted(dataclasses.asdict(self))


@dataclass(frozen=True)
class Field:
    """A declared field. name: "train.steps"; section and leaf: its two parts."""

    name: str
    section: str
    leaf: str
    default: Any
    help: str
    rule: Rule
    decides: bool
    samples: bool
    host_only: bool

    def of(self, config: Any) -> Any:
        """Its value in a config, which may be a ConfigDict."""
        return getattr(getattr(config, self.section) if self.section else config, self.leaf)


def arguments(function: Callable[..., Any], section: Any) -> dict[str, Any]:
    """The fields of a section that `function` takes under the same names, as keyword arguments."""
    taken = inspect.signature(function).parameters
    return {
        field.name: getattr(section, field.name)
        for field in dataclasses.fields(section)
        if field.name in taken
    }


def _sorted(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _sorted(tree[name]) for name in sorted(tree)}
    return tree


def _fields() -> dict[str, Field]:
    found = {}
    for outer in dataclasses.fields(Config):
        inner = (outer,) if outer.metadata else dataclasses.fields(cast(Any, outer.default))
        section = "" if outer.metadata else outer.name
        for field in inner:
            name = f"{section}.{field.name}" if section else field.name
            found[name] = Field(name, section, field.name, field.default, **field.metadata)
    return found


FIELDS: dict[str, Field] = _fields()  # by name, in the order of their declarations
SECTIONS = tuple(dict.fromkeys(field.section for field in FIELDS.values() if field.section))
