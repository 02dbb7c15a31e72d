"""`srpo export`: a verified checkpoint of a workdir, the newest or another, as a HF directory.

hf/export.py writes the weights in the source checkpoint's own form, hf/adapter.py writes adapters
alone in peft's; here the run is read back and the model card is written, from what the run recorded
and nothing else. A run with LoRA recorded adapters: their policy's weights are read again from its
folder, which must hold what it held then.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from srpo_jax import __version__
from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.distributed.sharding import param_shardings, replicated
from srpo_jax.errors import UserError
from srpo_jax.evaluate.scores import RATES
from srpo_jax.export.hf_checkpoint import export_checkpoint
from srpo_jax.export.peft import export_adapters
from srpo_jax.files import read_json, read_lines
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.hf import load
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.models.registry import load_model_config
from srpo_jax.runs.workdir import method, read_config, read_evaluations
from srpo_jax.train.checkpoint.manager import load_params
from srpo_jax.train.lora import Lora, init_adapters, make_lora, merged_params, merging
from srpo_jax.train.optimizer import merge, select, trainable_paths

FORMS = ("merged", "peft")
NEWEST: dict[str, Any] = {}


def newest_params(
    config: ConfigDict, workdir: str | os.PathLike, which: Mapping[str, Any] = NEWEST
) -> tuple[int, Any]:
    """(step, float32 parameters over the mesh of `config`) of the newest verified checkpoint.

    Of parameters that were trained in bfloat16 these are the float32 values that they were rounded
    from, and frozen ones come from config.model.path. Adapters are merged into its weights.
    which: load_params' `step` or `best`, for another checkpoint.
    Errors: UserError when there is none, or the model of `config` is another one.
    """
    workdir, path = pathlib.Path(workdir), config.model.path
    model_config, mesh = load_model_config(path), make_mesh(**config.mesh)
    abstract = abstract_params(model_config, jnp.float32)
    shardings = param_shardings(abstract, mesh)
    lora = lora_of_run(workdir, model_config)
    if lora is None:
        target = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            abstract,
            shardings,
        )
        train = read_config(workdir).get("train") or {}
        if train.get("param_dtype", "float32") == "float32":
            return load_params(workdir / "checkpoints", target, **which)
        trained = select(target, trainable_paths(target, tuple(train["freeze"])))
        step, master = load_params(workdir / "checkpoints", trained, "master", **which)
        if len(trained) < len(by_path(target)):
            check_base(workdir, path)
            target = load.load_params(path, model_config, dtype=jnp.float32, shardings=shardings)
        return step, merge(target, master)
    step, adapters = newest_adapters(lora, workdir, path, mesh, which)
    base = load.load_params(path, model_config, dtype=jnp.float32, shardings=shardings)
    return step, merged_params(lora, base, adapters)


def lora_of_run(workdir: pathlib.Path, model_config: Any) -> Lora | None:
    """The adapters that the run of a workdir trained: by its own config, whatever one is used now,
    because a checkpoint does not say how much its adapters count."""
    stored = read_config(workdir)
    section = stored.get("lora") or {}
    return make_lora(ConfigDict(stored), model_config) if section.get("rank") else None


def newest_adapters(
    lora: Lora, workdir: pathlib.Path, base: str, mesh: Any, which: Mapping[str, Any] = NEWEST
) -> tuple[int, Any]:
    """(step, adapters, whole on every device) of the newest verified checkpoint, or of `which`.

    Errors: UserError when there is none, or the weights in the folder `base` are not those that
    the adapters were trained on.
    """
    check_base(workdir, base)
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        jax.eval_shape(lambda: init_adapters(lora)),
    )
    return load_params(workdir / "checkpoints", target, **which)


def check_base(workdir: pathlib.Path, base: str) -> None:
    """UserError if config.json or the weights in the folder `base` are not those that the run of
    the workdir began with: they are what the export is cut after."""
    was = (read_json(workdir / "config.json").get("run") or {}).get("model weights")
    now = load.policy_digest(base)
    if was != now:
        raise UserError(
            f"{base} holds other weights ({now}) than those that {workdir} was trained from "
            f"({was}); put them back, or give that policy with --config.model.path"
        )


def export(
    workdir: str | os.PathLike,
    out: str | os.PathLike,
    *,
    form: str = "merged",
    verify: bool = False,
    step: str = "",
) -> pathlib.Path:
    """Writes the folder `out` (complete or not at all) and returns it.

    form: "merged" is a whole model; "peft" is the adapters of a run with LoRA alone. verify: read
    it back, compare what it computes (hf/verify.py), and print the result. step: a number, "best"
    by the run's train.best_metric, or "" for the newest.
    Errors: UserError; hf.verify.Mismatch, and then there is no folder.
    """
    if form not in FORMS:
        raise UserError(f"--format={form}: there is {', '.join(FORMS)}")
    if verify and (form == "peft" or jax.process_count() > 1):
        raise UserError("--verify needs --format=merged and a single process")
    workdir, out = pathlib.Path(workdir), pathlib.Path(out)
    stored = read_config(workdir)
    if not stored:
        raise UserError(f"{workdir} has no config.json: run `srpo train` first")
    config = ConfigDict(stored)
    which = _which(step, stored)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; remove it or give another --out")
    source = config.model.path
    model_config = load_model_config(source)
    lora = lora_of_run(workdir, model_config)
    if lora is None:
        if form == "peft":
            raise UserError(
                f"{workdir} was trained without LoRA: there are no adapters to write, export it "
                "with --format=merged"
            )
        check_base(workdir, source)
        found, params = newest_params(config, workdir, which)
        card = model_card(workdir, stored, found)
        check = verifying(params, source, model_config) if verify else None
        export_checkpoint(params, source, out, model_config, model_card=card, check=check)
        return out
    found, adapters = newest_adapters(lora, workdir, source, make_mesh(**config.mesh), which)
    adapters = {path: np.asarray(leaf) for path, leaf in by_path(adapters).items()}
    card = model_card(workdir, stored, found, form)
    if form == "peft":
        settings = lora.peft_settings()
        export_adapters(adapters, source, out, model_config, settings=settings, model_card=card)
    else:
        values = merging(lora, adapters)
        check = verifying(values, source, model_config) if verify else None
        export_checkpoint(values, source, out, model_config, model_card=card, check=check)
    return out


def _which(step: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """load_params' choice for --step."""
    if step == "best":
        return {"best": stored["train"].get("best_metric", "loss")}
    if step and not step.isdecimal():
        raise UserError(f"--step={step}: must be a step's number, or best")
    return {"step": int(step)} if step else {}


def verifying(params: Any, source: str, model_config: Any) -> Callable[[pathlib.Path], None]:
    """The check of an export of `params`: says what was compared, or raises hf.verify.Mismatch."""
    from srpo_jax.export.verify import verify

    return lambda folder: print(f"verified: {verify(folder, source, params, model_config)}")


def model_card(
    workdir: pathlib.Path, config: Mapping[str, Any], step: int, form: str = "merged"
) -> str:
    """README.md of the export: what was trained on what, how, and with what result."""
    base = pathlib.PurePath(config["model"]["path"]).name  # no path of this machine
    run = read_json(workdir / "config.json").get("run") or {}
    data = str(run.get("trees", "unknown"))[:16]
    lines = [
        "---",
        f"library_name: {'peft' if form == 'peft' else 'transformers'}",
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
        *_weights_lines(config.get("lora") or {}, base, form),
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


def _weights_lines(lora: Mapping[str, Any], base: str, form: str) -> list[str]:
    """What the exported weights are."""
    lines = []
    if lora.get("rank"):
        kind = "rsLoRA" if lora["use_rslora"] else "LoRA"
        where = ", ".join(f"`{target}`" for target in lora["targets"])
        lines = [f"* {kind} of rank {lora['rank']}, alpha {lora['alpha']:g}, on {where}"]
    if form == "peft":
        return [*lines, f"* adapters only: `peft` adds them to `{base}` in transformers 5"]
    same = "same architecture, tokenizer and processor as the base model; only the weights differ"
    return [*lines, f"* {same}"]


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
    """The config with file names instead of paths, and without addresses."""
    plain = json.loads(json.dumps(config, default=str))
    named = (
        "model.path",
        "data.train_records",
        "data.test_records",
        "data.trees",
        "train.compilation_cache",
    )
    for section, field in (name.split(".") for name in named):
        plain[section][field] = pathlib.PurePath(plain[section].get(field, "")).name
    plain.pop("processes", None)  # addresses of a cluster
    return plain
