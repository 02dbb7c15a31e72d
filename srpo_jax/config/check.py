"""`validate(config)`: what is wrong with a config, in one line.

ml_collections checks that a value has the type of the default, but not that it is a number,
positive or a known word, and it takes any file that has a get_config. All that is closed here.
"""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from srpo_jax.buckets.objects import address_in, bucket_and_name, is_url
from srpo_jax.config.fields import FIELDS, SECTIONS, Config
from srpo_jax.config.rules import Rule
from srpo_jax.errors import UserError


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"train.steps": 100, ...} of a config's `to_dict`; a plain value stays under its name."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def check_field_name(name: str) -> None:
    """UserError unless `name` ("train.steps") is a field that a config has."""
    if name in FIELDS:
        return
    if name in SECTIONS:
        inside = [field.leaf for field in FIELDS.values() if field.section == name]
        raise UserError(f"config.{name} is a section, not a field; it has {', '.join(inside)}")
    raise UserError(f"there is no config.{name}{_did_you_mean(name, FIELDS)}")


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


def validate(config: Config | ConfigDict, unused: Container[str] = ()) -> None:
    """UserError with one line (field, value, what is allowed) at the first thing that is wrong.

    unused: required fields that may be empty all the same, as nobody will read them.
    """
    flat = flatten(config.to_dict())
    for name in flat:
        check_field_name(name)
    for name, rule in ((field.name, field.rule) for field in FIELDS.values()):
        if name not in flat:
            raise UserError(f"config.{name} is missing; start from configs/common.py: get_config()")
        if name in unused and flat[name] == "":
            continue
        if rule.required and flat[name] == "":
            raise UserError(f"config.{name} is empty; give it with --config.{name}=...")
        if name == "train.best_metric":
            _check_no_benchmark(flat[name])
        if not rule.accepts(flat[name]):
            raise UserError(f"config.{name} is {flat[name]!r}; allowed is {rule.allowed()}")
        check_address(name, rule, flat[name])
    _check_together(config)


def check_address(name: str, rule: Rule, value: Any) -> None:
    """UserError for a place of files that is an address, where none is read: it would be taken for
    the name of a folder.
    """
    address = address_in(value) if isinstance(value, str) and rule.address != "server" else ""
    if rule.address == "bucket" and is_url(value):
        bucket_and_name(value)  # it is well written
    elif address:
        takes = [field.name for field in FIELDS.values() if field.rule.address == "bucket"]
        raise UserError(
            f"config.{name} is {value!r}, and {address} is no file or folder: {', '.join(takes)} "
            "may lie in a bucket (gs://BUCKET/PATH); for others mount it, see docs/places.md"
        )


def check_exploring(config: Config | ConfigDict) -> None:
    """UserError for settings with which sampling branches would be in vain."""
    explore = config.explore
    if explore.temperature == 0 and explore.branches > 1:
        raise UserError(
            f"config.explore.temperature is 0 and config.explore.branches is {explore.branches}: "
            "greedy branches of a point are all the same, so there is no pair; raise the "
            "temperature, or sample one branch"
        )


def _check_no_benchmark(metric: Any) -> None:
    """That train.best_metric is not what a look at a benchmark finds, validation/BENCHMARK/RATE."""
    if isinstance(metric, str) and metric.startswith("validation/") and metric.count("/") > 1:
        raise UserError(
            f"config.train.best_metric is {metric!r}: a benchmark is a test set, so it chooses no "
            "checkpoint and ends no run; choose by data.validation_records"
        )


def _check_together(config: Config | ConfigDict) -> None:
    """What no field can be blamed for alone."""
    objective = config.objective
    if objective.branch_coef and (objective.ref_coef == 0 or objective.reference == "none"):
        raise UserError(
            f"config.objective.branch_coef is {objective.branch_coef:g}: safe branches count in "
            "L_ref, which is left out (ref_coef 0 or reference none)"
        )
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
    by_look = config.train.best_metric.startswith("validation/")
    if config.train.patience and not by_look:
        raise UserError(
            f"config.train.patience is {config.train.patience} and config.train.best_metric is "
            f"{config.train.best_metric!r}: early stopping needs a metric of held-out data, one of "
            "validation/"
        )
    if by_look and (config.train.patience or config.train.keep_best) and not config.eval.every:
        raise UserError(
            f"config.train.best_metric is {config.train.best_metric!r} but config.eval.every is 0: "
            "say how often to look at held-out data"
        )
    if config.eval.benchmarks and not config.eval.every:
        raise UserError(
            f"config.eval.benchmarks is {config.eval.benchmarks!r} but config.eval.every is 0: say "
            "how often to look at them during training; `srpo eval` takes --benchmark"
        )
    if config.eval.benchmark_data and not config.eval.benchmarks:
        raise UserError(
            f"config.eval.benchmark_data is {config.eval.benchmark_data!r} but "
            "config.eval.benchmarks is empty: name those that it is the data of"
        )
    if not config.pack.questions and config.pack.rows % config.train.accumulate:
        raise UserError(
            f"config.pack.rows is {config.pack.rows}, which config.train.accumulate "
            f"({config.train.accumulate}) does not divide"
        )
