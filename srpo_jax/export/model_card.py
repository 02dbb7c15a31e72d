"""The model card of an export: README.md, from what the run recorded and nothing else."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from srpo_jax import __version__
from srpo_jax.files import read_json, read_lines
from srpo_jax.judge.rates import RATES
from srpo_jax.models.hf.prompt_encoder import BAKED
from srpo_jax.runs.workdir import method, read_evaluations


def model_card(
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    step: int,
    form: str = "merged",
    bake_prompt: str = "",
) -> str:
    """The text of README.md: what was trained on what, how, and with what result.

    workdir: of the run. config: the one that the run recorded. step: the checkpoint's. form: of the
    export, "merged" or "peft". bake_prompt: whether and how its chat template has the prompt in it.
    """
    base = pathlib.PurePath(config["model"]["path"]).name  # no path of this machine
    stored = read_json(workdir / "config.json")
    run, facts = stored.get("run") or {}, stored.get("data") or {}
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
        f"* reasoning trees: fingerprint `{data}`, {_trained_on(facts)}",
        *_weights_lines(config.get("lora") or {}, base, form, bake_prompt),
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


def _trained_on(facts: Mapping[str, Any]) -> str:
    """Questions, pairs, and whose verdicts they are by."""
    if not facts:
        return "of a run that did not record what it was trained on"
    text = f"{facts['questions']} questions"
    judge = facts.get("verdicts")
    if judge is None:
        return f"{text}; no branch was compared"
    return (
        f"{text}, {facts['questions_with_pair']} of them with a pair of branches, "
        f"{facts['pairs']} pairs; judged by `{judge['arbiter']}` (digest `{judge['digest']}`)"
    )


def _weights_lines(lora: Mapping[str, Any], base: str, form: str, bake_prompt: str) -> list[str]:
    """What the exported weights are, and what else is not the base model's."""
    lines = []
    if lora.get("rank"):
        kind = "rsLoRA" if lora["use_rslora"] else "LoRA"
        where = ", ".join(f"`{target}`" for target in lora["targets"])
        lines = [f"* {kind} of rank {lora['rank']}, alpha {lora['alpha']:g}, on {where}"]
    if form == "peft":
        return [*lines, f"* adapters only: `peft` adds them to `{base}` in transformers 5"]
    if not bake_prompt:
        same = "same architecture, tokenizer and processor as the base model"
        return [*lines, f"* {same}; only the weights differ"]
    lines += ["* same architecture, tokenizer and image processor as the base model"]
    told = "the chat template has the prompt of the training in it: ask the bare question"
    if bake_prompt == "reply_only":
        told += "; prompts end where the reply begins, so no reasoning path is written"
    return [*lines, f"* {told} (`{BAKED}`)"]


def _results(evaluations: Mapping[str, Mapping]) -> list[str]:
    if not evaluations:
        return []
    names = list(evaluations)
    rows = ["## Evaluation (percent)", "", "| | " + " | ".join(names) + " |"]
    rows.append("|---|" + "---|" * len(names))
    for rate in RATES:
        values = [evaluations[name].get(rate.name) for name in names]
        cells = " | ".join("-" if value is None else f"{value:.1f}" for value in values)
        rows.append(f"| {rate.name} | {cells} |")
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
        "prompt.demos",
        "train.compilation_cache",
    )
    for section, field in (name.split(".") for name in named):
        if field in plain.get(section, {}):  # not in a config of an older version
            plain[section][field] = pathlib.PurePath(plain[section][field]).name
    plain.pop("processes", None)  # addresses of a cluster
    return plain
