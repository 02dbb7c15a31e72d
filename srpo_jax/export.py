"""`srpo export`: the newest verified checkpoint of a workdir as a Hugging Face directory.

hf/export.py writes the weights in the source checkpoint's own form; here the run is read back and
the model card is written, from what the run recorded and nothing else.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any, Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from srpo_jax import __version__
from srpo_jax.checkpoint import load_params
from srpo_jax.errors import UserError
from srpo_jax.evaluate.scores import RATES
from srpo_jax.hf.export import export_checkpoint
from srpo_jax.mesh import make_mesh
from srpo_jax.models.families import load_model_config
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.sharding import param_shardings
from srpo_jax.workdir import method, read_config, read_evaluations, read_json, read_lines


def newest_params(config: ConfigDict, workdir: str | os.PathLike) -> tuple[int, Any]:
    """(step, float32 parameters over the mesh of `config`) of the newest verified checkpoint.

    Errors: UserError when there is none, or the model of `config` is another one.
    """
    abstract = abstract_params(load_model_config(config.model.path), jnp.float32)
    shardings = param_shardings(abstract, make_mesh(**config.mesh))
    target = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract,
        shardings,
    )
    return load_params(pathlib.Path(workdir) / "checkpoints", target)


def export(workdir: str | os.PathLike, out: str | os.PathLike) -> pathlib.Path:
    """Writes the folder `out` (complete or not at all) and returns it. Errors: UserError."""
    workdir, out = pathlib.Path(workdir), pathlib.Path(out)
    stored = read_config(workdir)
    if not stored:
        raise UserError(f"{workdir} has no config.json: run `srpo train` first")
    config = ConfigDict(stored)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; remove it or give another --out")
    step, params = newest_params(config, workdir)
    source = config.model.path
    card = model_card(workdir, stored, step)
    export_checkpoint(params, source, out, load_model_config(source), model_card=card)
    return out


def model_card(workdir: pathlib.Path, config: Mapping[str, Any], step: int) -> str:
    """README.md of the export: what was trained on what, how, and with what result."""
    base = pathlib.PurePath(config["model"]["path"]).name  # no path of this machine
    run = read_json(workdir / "config.json").get("run") or {}
    data = str(run.get("trees", "unknown"))[:16]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
        "tags: [srpo, safety, reasoning]",
        "---",
        "",
        f"# {config['name']}",
        "",
        f"`{base}`, trained with srpo_jax {__version__}: {method(config)}.",
        "",
        f"* checkpoint: step {step} of {config['train']['steps']}, seed {config['seed']}",
        f"* reasoning trees: fingerprint `{data}`, judged by `{config['arbiter']['kind']}`",
        "* same architecture, tokenizer and processor as the base model; only the weights differ",
        "",
    ]
    lines += _results(read_evaluations(workdir))
    lines += _last_metrics(read_lines(workdir / "metrics.jsonl"), step)
    lines += [
        "## Limits",
        "",
        "The figures hold for the questions and the arbiter of this run. A safety rate is not a "
        "guarantee: test the model on your own questions before anybody relies on it.",
        "",
        "## Config",
        "",
        "```json",
        json.dumps(_without_folders(config), indent=1),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _results(evaluations: Mapping[str, Mapping]) -> list[str]:
    if not evaluations:
        return []
    names = list(evaluations)
    rows = ["## Evaluation (percent)", "", "| | " + " | ".join(names) + " |"]
    rows.append("|---|" + "---|" * len(names))
    for rate in RATES:
        values = [evaluations[name].get(rate) for name in names]
        cells = " | ".join("-" if value is None else f"{value:.1f}" for value in values)
        rows.append(f"| {rate} | {cells} |")
    return [*rows, ""]


def _last_metrics(metrics: list[dict], step: int) -> list[str]:
    rows = [row for row in metrics if isinstance(row.get("step"), int) and row["step"] <= step]
    if not rows:
        return []
    shown = {
        name: value
        for name, value in rows[-1].items()
        if isinstance(value, float) and not name.startswith("perf/")
    }
    listed = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    return [f"## Training, step {rows[-1]['step']}", "", listed, ""]


def _without_folders(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with file names instead of this machine's paths."""
    plain = json.loads(json.dumps(config, default=str))
    named = ("model.path", "data.train_records", "data.test_records", "data.trees")
    for section, field in (name.split(".") for name in named):
        plain[section][field] = pathlib.PurePath(plain[section].get(field, "")).name
    return plain
