"""What a config may hold: one rule per field, and `validate(config)` that says what is wrong.

ml_collections checks that a value has the type of the default, but not that it is a number,
positive or a known word, and it takes any file that has a get_config. All that is closed here.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from srpo_jax.errors import UserError
from srpo_jax.train.checkpoint.retention import BEST_METRICS


@dataclass(frozen=True)
class Rule:
    """Which values a field takes: a type, and words or a range. `low_open` excludes `low`, `also`
    adds single values to the range, `required` refuses "". `names`: one or more of these, with
    commas. `outside`: also a user's own, by `module:Class`.
    """

    kind: type
    words: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    also: tuple[float, ...] = ()
    required: bool = False
    regexes: bool = False
    names: tuple[str, ...] = ()
    outside: bool = False

    def allowed(self) -> str:
        """The rule in words, for error messages and docs/configuration.md."""
        if self.words:
            return " | ".join(self.words)
        if self.regexes:
            return "a tuple of regular expressions"
        if self.names:
            return f"{self.names[0]}, or any of {','.join(self.names[1:])} with commas between"
        names = {int: "a whole number", float: "a number", str: "text", bool: "True | False"}
        name = names[self.kind]
        if self.required:
            return f"{name}, required"
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'above' if self.low_open else 'from'} {self.low}")
        if self.high < math.inf:
            bounds.append(f"up to {self.high}")
        also = "".join(f", or {value:g}" for value in self.also)
        return " ".join([name, *bounds]) + also

    def accepts(self, value: Any) -> bool:
        """Whether a value is allowed. An int is taken where a float is meant, a bool never is."""
        if self.regexes:
            return isinstance(value, tuple) and all(_is_regex(item) for item in value)
        if self.kind is float:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                return False
        elif type(value) is not self.kind:
            return False
        if self.words:
            return value in self.words or (self.outside and ":" in value)
        if self.names:
            parts = value.split(",")
            return value == self.names[0] or (
                set(parts) <= set(self.names[1:]) and len(set(parts)) == len(parts)
            )
        if self.kind in (int, float):
            if not math.isfinite(value):
                return False
            above = value > self.low if self.low_open else value >= self.low
            return value in self.also or (above and value <= self.high)
        return bool(value.strip()) if self.required else True


def _is_regex(item: Any) -> bool:
    try:
        return isinstance(item, str) and bool(item) and re.compile(item) is not None
    except re.error:
        return False


def _word(*words: str) -> Rule:
    return Rule(str, words=words)


def _int(low: int, *also: int) -> Rule:
    return Rule(int, low=low, also=also)


_TEXT = Rule(str)
_REQUIRED = Rule(str, required=True)
_FRACTION = Rule(float, low=0, high=1)
_POSITIVE = Rule(float, low=0, low_open=True)
_NOT_NEGATIVE = Rule(float, low=0)
_FLAG = Rule(bool)

RULES: dict[str, Rule] = {
    "name": _REQUIRED,
    "seed": Rule(int, low=0, high=2**31 - 1),
    "model.path": _REQUIRED,
    "model.dtype": _word("float32", "bfloat16"),
    "model.remat": _word("none", "full", "dots", "attention", "offload"),
    "model.attention": _word("auto", "xla", "block", "pallas_tpu", "pallas_gpu"),
    "data.train_records": _REQUIRED,
    "data.test_records": _REQUIRED,
    "data.trees": _TEXT,
    "explore.branches": _int(1),
    "explore.temperature": _NOT_NEGATIVE,
    "explore.max_new_tokens": _int(1),
    "explore.batch": _int(1),
    "explore.num_questions": _int(0),
    "explore.branch_points": _word("all", "first"),
    "explore.reference": _word("dataset", "self"),
    "explore.shards": _int(1),
    "arbiter.kind": _REQUIRED,
    "arbiter.scope": _word("reply", "path"),
    "arbiter.require_effective": _FLAG,
    "objective.lambda_exp": _NOT_NEGATIVE,
    "objective.contrast": Rule(str, words=("odds_ratio", "dpo", "simpo", "ipo"), outside=True),
    "objective.normalise": _word("mean", "sum"),
    "objective.pairing": _word("all", "one", "rpo_code"),
    "objective.max_pairs": _int(1),
    "objective.branch_points": _word("all", "first"),
    "objective.reference": _word("dataset", "chosen", "none"),
    "objective.odds_from": _word("branch", "divergence"),
    "objective.ref_reduction": _word("question", "token"),
    "objective.ref_coef": _NOT_NEGATIVE,
    "objective.beta": _POSITIVE,
    "objective.gamma": _NOT_NEGATIVE,
    "pack.row_tokens": _int(0),
    "pack.rows": _int(1),
    "train.steps": _int(1),
    "train.optimizer": _word("adamw", "adafactor"),
    "train.param_dtype": _word("float32", "bfloat16"),
    "train.learning_rate": _POSITIVE,
    "train.warmup_steps": _int(0),
    "train.schedule": _word("cosine", "linear", "constant"),
    "train.weight_decay": _NOT_NEGATIVE,
    "train.b1": _FRACTION,
    "train.b2": _FRACTION,
    "train.eps": _POSITIVE,
    "train.clip_norm": _NOT_NEGATIVE,
    "train.freeze": Rule(tuple, regexes=True),
    "train.accumulate": _int(1),
    "train.save_every": _int(1),
    "train.keep": _int(1),
    "train.keep_best": _int(0),
    "train.best_metric": _word(*BEST_METRICS),
    "train.log_every": _int(1),
    "train.watchdog_minutes": _NOT_NEGATIVE,
    "train.compilation_cache": _REQUIRED,
    "train.report_to": Rule(str, names=("none", "tensorboard", "wandb", "trackio")),
    "lora.rank": _int(0),
    "lora.alpha": _POSITIVE,
    "lora.use_rslora": _FLAG,
    "lora.dropout": Rule(float, low=0, high=0.9),
    "lora.targets": Rule(tuple, regexes=True),
    "lora.base_dtype": _word("float32", "bfloat16"),
    "mesh.data": _int(1),
    "mesh.fsdp": _int(1, -1),
    "mesh.tensor": _int(1),
    "processes.coordinator": _TEXT,
    "processes.index": _int(0, -1),
    "processes.count": _int(0),
    "processes.heartbeat_seconds": _int(5, 0),
    "eval.batch": _int(1),
    "eval.max_new_tokens": _int(1),
    "eval.num_questions": _int(0),
    "eval.split": _word("test", "train"),
}
SECTIONS = tuple(dict.fromkeys(name.split(".")[0] for name in RULES if "." in name))


def flatten(config: ConfigDict) -> dict[str, Any]:
    """{"train.steps": 100, ...} of a config with sections; a plain value stays under its name."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat.update({f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def check_field_name(name: str) -> None:
    """UserError unless `name` ("train.steps") is a field that a config has."""
    if name in RULES:
        return
    if name in SECTIONS:
        inside = [field[len(name) + 1 :] for field in RULES if field.startswith(name + ".")]
        raise UserError(f"config.{name} is a section, not a field; it has {', '.join(inside)}")
    raise UserError(f"there is no config.{name}{_did_you_mean(name, RULES)}")


# Names that other tools use for the same thing.
OTHER_NAMES = {
    "lr": "train.learning_rate",
    "batch_size": "pack.rows",
    "lambda": "objective.lambda_exp",
    "num_steps": "train.steps",
    "max_steps": "train.steps",
    "model_name_or_path": "model.path",
}


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean X?": by another tool's name, in its section, then anywhere by last part."""
    section, _, leaf = name.rpartition(".")
    near = [OTHER_NAMES[leaf]] if leaf in OTHER_NAMES else []
    if not near:
        inside = {full.rpartition(".")[2]: full for full in known if full.startswith(section + ".")}
        anywhere = {full.rpartition(".")[2]: full for full in known}
        for names in (inside, anywhere):
            near = near or [names[n] for n in difflib.get_close_matches(leaf, names, n=1)]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if not near:
        return "; docs/configuration.md lists all fields"
    return f"; did you mean config.{near[0]}?"


def validate(config: ConfigDict, unused: Container[str] = ()) -> None:
    """UserError with one line (field, value, what is allowed) at the first thing that is wrong.

    unused: required fields that may be empty all the same, as nobody will read them.
    """
    flat = flatten(config)
    for name in flat:
        check_field_name(name)
    for name, rule in RULES.items():
        if name not in flat:
            raise UserError(f"config.{name} is missing; start from configs/common.py: get_config()")
        if name in unused and flat[name] == "":
            continue
        if rule.required and flat[name] == "":
            raise UserError(f"config.{name} is empty; give it with --config.{name}=...")
        if not rule.accepts(flat[name]):
            raise UserError(f"config.{name} is {flat[name]!r}; allowed is {rule.allowed()}")
    _check_together(config)


def _check_together(config: ConfigDict) -> None:
    """What no field can be blamed for alone."""
    objective = config.objective
    if objective.lambda_exp == 0 and (objective.ref_coef == 0 or objective.reference == "none"):
        raise UserError(
            "config.objective leaves no loss: lambda_exp is 0 and so is the reference term "
            "(ref_coef 0 or reference none)"
        )
    if objective.branch_points == "all" and config.explore.branch_points == "first":
        raise UserError(
            "config.objective.branch_points is 'all' but config.explore.branch_points is 'first': "
            "there are no other branches to train on; set both to the same"
        )
    if config.lora.rank and config.train.freeze:
        raise UserError(
            "config.train.freeze and config.lora.rank exclude each other: adapters leave every "
            "weight of the policy as it is; say with config.lora.targets where they are"
        )
    if config.lora.rank and config.train.param_dtype != "float32":
        raise UserError(
            "config.train.param_dtype is for training the policy itself: adapters are float32; "
            "the dtype of the weights under them is config.lora.base_dtype"
        )
    if config.lora.rank and not config.lora.targets:
        raise UserError("config.lora.targets is empty, so config.lora.rank adapts nothing")
    if config.pack.rows % config.train.accumulate:
        raise UserError(
            f"config.pack.rows is {config.pack.rows}, which config.train.accumulate "
            f"({config.train.accumulate}) does not divide"
        )
