"""The model card of an export: README.md, from what the run recorded and nothing else."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from srpo_jax import __version__
from srpo_jax.data_pipelines.exchange.licenses import licenses_in, told
from srpo_jax.errors import one_line
from srpo_jax.export.digests import DIGESTS
from srpo_jax.files import read_json, read_lines
from srpo_jax.judge.results.intervals import Rate
from srpo_jax.judge.results.rates import RATES
from srpo_jax.judge.results.scores import bounds, read_rate
from srpo_jax.judge.roles import warning
from srpo_jax.models.hf.prompt_encoder import BAKED
from srpo_jax.runs.judge_facts import LONGEST, judge_facts, same_judge, without_folders
from srpo_jax.runs.workdir import local_place, method, read_evaluations, run_name

# Fields with paths, of which the card shows the last name; and those that it does not show.
PATHS = (
    "model.path",
    "data.train_records",
    "data.test_records",
    "data.trees",
    "prompt.demos",
    "judge.rubric",
    "judge.cases",
    "train.compilation_cache",
)
# Keys of a card's metadata that are taken over from the base model's.
LICENSE = ("license", "license_name", "license_link")
LONGEST_METADATA = 1 << 16  # characters
_HEAD = re.compile(r"---\n(.*?)\n---\s", re.DOTALL)
_MARKUP = re.compile(r"[\\`*\[\]<>#|~&!]")
PRIVATE = ("judge.base_url", "judge.api_key_env")


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
    base = base_name(config["model"]["path"])  # no path of this machine
    stored = read_json(workdir / "config.json")
    run, facts = stored.get("run") or {}, stored.get("data") or {}
    how, called = method(config, facts), run_name(config)
    evaluations = read_evaluations(workdir)
    lines = [
        "---",
        f"library_name: {'peft' if form == 'peft' else 'transformers'}",
        "pipeline_tag: image-text-to-text",
        f"tags: [{'srpo, ' if how.startswith('SRPO') else ''}safety, reasoning]",
        *_origin(local_place(config["model"]["path"]), base),
        "---",
        "",
        f"# {words(base)}: {words(how)}",
        "",
        f"{code(base)}, trained with srpo_jax {__version__}: {words(how)}.",
        "",
        *([f"* run: {code(called)}"] if called else []),
        f"* checkpoint: step {step} of {config['train']['steps']}, seed {config['seed']}",
        *_trained_on(config, run, facts),
        *_data_licenses(workdir, config),
        *_asked(config),
        *_weights_lines(config, base, form, bake_prompt),
        "",
        *_results(evaluations, facts),
        *_last_metrics(read_lines(workdir / "metrics.jsonl"), step),
        "## Limits",
        "",
        _limits(evaluations),
        "",
        "## Config",
        "",
        *_fenced(json.dumps(public_config(config), indent=1)),
    ]
    return "\n".join(lines) + "\n"


def _trained_on(
    config: Mapping[str, Any], run: Mapping[str, Any], facts: Mapping[str, Any]
) -> list[str]:
    """Questions, pairs, and whose verdicts they are by."""
    trees = f"* reasoning trees: fingerprint `{str(run.get('trees', 'unknown'))[:16]}`"
    if not facts:
        return [f"{trees}, of a run that did not record what it was trained on"]
    text = f"{facts['questions']} questions"
    if not facts["pairs"]:
        lines = [f"{trees}, {text}; no branch was compared"]
    else:
        pairs = f"{facts['questions_with_pair']} of them with a pair of branches"
        lines = [f"{trees}, {text}, {pairs}, {facts['pairs']} pairs"]
    if labels := facts.get("labels"):
        shares = [
            f"{100 * labels[name] / max(labels['branches'], 1):.1f} % {said}"
            for name, said in (("safe", "safe"), ("unsafe", "unsafe"), ("error", "not judged"))
        ]
        lines.append(f"* of {labels['branches']} branches {', '.join(shares)}")
    if judge := facts.get("verdicts"):
        lines.append(f"* {'labels by' if facts['pairs'] else 'reference paths judged by'}:")
        lines += _judge_lines(judge)
        lines.append(f"* {_labelled(config.get('arbiter') or {})}")
    elif facts["pairs"]:
        lines.append("* labels: whose they are was not recorded")
    return lines


def _data_licenses(workdir: pathlib.Path, config: Mapping[str, Any]) -> list[str]:
    """The licences of imported data that the run was trained on, or explored from, and what they
    forbid: of the folder of the trees, else of that of the records.
    """
    data = config.get("data") or {}
    trees = local_place(str(data.get("trees") or workdir / "trees")).parent
    records = str(data.get("train_records") or "")
    places = [trees] + [local_place(records).parent] * (records.endswith(".jsonl"))
    found = next(filter(None, map(licenses_in, places)), {})
    if not found:
        return []
    return ["* licences of the data:"] + [f"    * {words(told(name))}" for name in sorted(found)]


def _judge_lines(judge: Mapping[str, Any]) -> list[str]:
    return [f"    * {name}: {code(value)}" for name, value in judge_facts(judge)]


def _labelled(arbiter: Mapping[str, Any]) -> str:
    """What makes a branch safe, by the section `arbiter` of a config."""
    text = "a branch counts as safe by its reply"
    if arbiter.get("scope") == "path":
        text += " and every step of its path"
    if arbiter.get("require_effective"):
        text += ", and must be of use"
    if arbiter.get("filter_references"):
        text += "; questions whose reference path was not judged safe were left out"
    return text


def _asked(config: Mapping[str, Any]) -> list[str]:
    """How paths are written, and what the policy was told."""
    form, prompt = config.get("format") or {}, config.get("prompt") or {}
    lines = [f"* path format: {code(form['kind'])}"] if form else []
    if not prompt:  # of an older version
        return lines
    told = [f"instruction {code(prompt['instruction'])}"]
    if prompt["system"]:
        told.insert(0, f"system message {code(prompt['system'])}")
    if prompt["num_demos"]:
        told.append(f"{prompt['num_demos']} demonstrations")
    lines.append(f"* prompt: {', '.join(told)}")
    if prompt["train"] == "bare":
        lines.append(
            "* trained on the bare questions, though the branches were sampled with that prompt: "
            "ask without it (`prompt.train=bare`)"
        )
    return lines


def _weights_lines(config: Mapping[str, Any], base: str, form: str, bake_prompt: str) -> list[str]:
    """What the exported weights are, and what else is not the base model's."""
    lines = []
    lora = config.get("lora") or {}
    if frozen := config["train"].get("freeze"):
        lines.append(f"* not trained: {', '.join(map(code, frozen))}")
    if lora.get("rank"):
        kind = "rsLoRA" if lora["use_rslora"] else "LoRA"
        where = ", ".join(map(code, lora["targets"]))
        lines += [f"* {kind} of rank {lora['rank']}, alpha {lora['alpha']:g}, on {where}"]
    if pixels := config.get("data", {}).get("max_pixels"):
        lines.append(f"* pictures are shown with at most {pixels} pixels")
    if form == "peft":
        return [*lines, f"* adapters only: `peft` adds them to {code(base)} in transformers 5"]
    if not bake_prompt:
        same = "same architecture, tokenizer and processor as the base model"
        return [*lines, f"* {same}; only the weights differ"]
    lines += ["* same architecture, tokenizer and image processor as the base model"]
    told = "the chat template has the prompt of the training in it: ask the bare question"
    if bake_prompt == "reply_only":
        told += "; prompts end where the reply begins, so no reasoning path is written"
    return [*lines, f"* {told} (`{BAKED}`)"]


def _results(evaluations: Mapping[str, Mapping], facts: Mapping[str, Any]) -> list[str]:
    """Rates of every evaluation, with what was asked of whom, and who judged; beside them who
    judged what the run was trained on.
    """
    if not evaluations:
        return []
    found = list(evaluations.values())
    judges = {
        str(scores["judge"]["digest"]): scores["judge"] for scores in found if scores.get("judge")
    }

    def row(name: str, cells: Iterable[object]) -> str:
        return f"| {words(name)} | " + " | ".join(map(words, cells)) + " |"

    lines = ["## Evaluation (percent, 95 % interval, k/n)", "", row("", evaluations)]
    lines.append("|---|" + "---|" * len(found))
    for rate in RATES:
        lines.append(row(rate.name, (_rate(read_rate(scores, rate.name)) for scores in found)))
    lines.append(row("questions", (scores.get("n", "-") for scores in found)))
    lines.append(row("policy", (scores.get("policy_digest", "-") for scores in found)))
    named = [(scores.get("judge") or {}).get("digest", "not recorded") for scores in found]
    lines.append(row("judge", named))
    training = facts.get("verdicts")
    untold = "none: nothing was compared" if facts.get("pairs") == 0 else "not recorded"
    trained = (training or {}).get("digest", untold)
    lines += [row("judge of the training", [trained] * len(found)), ""]
    for judge in judges.values():
        lines += [f"* judge `{judge['digest']}`:", *_judge_lines(judge)]
    for said in dict.fromkeys(warning(training, judge) for judge in judges.values()):
        lines += ["", f"**{said}**"] if said else []
    if not same_judge(*(scores.get("judge") for scores in found)):
        lines += ["", "These scores are not all of one judge: they cannot be compared."]
    return [*lines, ""]


def _rate(found: Rate | None) -> str:
    """75.0, 30.1 to 95.4, 3/4"""
    if found is None:
        return "-"
    parts = [f"{found.value:.1f}", bounds(found), f"{found.k}/{found.n}" if found.n else ""]
    return ", ".join(part for part in parts if part)


def _limits(evaluations: Mapping[str, Mapping]) -> str:
    """What the figures do not say."""
    if not evaluations:
        return (
            "Nothing was measured when this was exported: whether the model is safer than the one "
            "that it was trained from is not known. Test it on your own questions before anybody "
            "relies on it."
        )
    return (
        "The figures hold for the questions and the judge that are named with them. A safety rate "
        "is not a guarantee: test the model on your own questions before anybody relies on it."
    )


def _last_metrics(metrics: list[dict], step: int) -> list[str]:
    rows = [row for row in metrics if isinstance(row.get("step"), int) and row["step"] <= step]
    if not rows:
        return []
    last = [row for row in rows if row["step"] == rows[-1]["step"]]  # the step, and a look after it
    shown = {
        name: value
        for row in last
        for name, value in row.items()
        if isinstance(value, float) and not name.startswith("perf/")
    }
    listed = ", ".join(f"{words(name)} {value:.4g}" for name, value in shown.items())
    return [f"## Training, step {rows[-1]['step']}", "", listed, ""]


def _fenced(text: str) -> list[str]:
    """JSON as a block, whatever backticks are in it."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{ticks}json", text, ticks]


def words(text: object) -> str:
    """A text as words on one line of markdown: nothing in it is markup."""
    return _MARKUP.sub(r"\\\g<0>", one_line(text, LONGEST))


def base_name(path: str) -> str:
    """What a model is called by the folder it lies in: the last name of its path, or OWNER/NAME of
    a folder in the Hub's cache."""
    parts = pathlib.PureWindowsPath(path).parts  # knows both kinds of slashes
    cached = [part.split("--", 2)[1:] for part in parts if part.startswith("models--")]
    return "/".join(cached[-1]) if cached else (parts[-1] if parts else "")


def _origin(folder: pathlib.Path, base: str) -> list[str]:
    """Lines of the card's metadata: which model it was made of, and under which license that one
    is, as its own card says. A run that began with an export of ours names what that was made of.
    """
    theirs = _metadata(folder / "README.md")
    known = theirs.get("base_model") if (folder / DIGESTS).is_file() else None
    found = {"base_model": known if isinstance(known, str) else base}
    found |= {name: theirs[name] for name in LICENSE if isinstance(theirs.get(name), str)}
    # A JSON string is one of YAML, whatever is in it.
    return [f"{name}: {json.dumps(one_line(text, LONGEST))}" for name, text in found.items()]


def _metadata(card: pathlib.Path) -> dict[str, Any]:
    """The metadata of a model card; {} if there is no card, or none that can be read."""
    try:
        with open(card, encoding="utf-8") as file:
            head = file.read(LONGEST_METADATA)
        found = _HEAD.match(head)
        said = yaml.safe_load(found.group(1)) if found else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return said if isinstance(said, dict) else {}


def code(text: object) -> str:
    """A text as a code span on one line of markdown."""
    shown = one_line(text, LONGEST).replace("`", "'")
    return f"`{shown}`" if shown else "none"


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with file names instead of paths, without addresses and names of keys."""
    plain = json.loads(json.dumps(config, default=str))
    for section, field in (name.split(".") for name in PATHS):
        if field in plain.get(section, {}):  # not in a config of an older version
            value = plain[section][field]
            names = [pathlib.PureWindowsPath(part).name for part in value.split(",")]
            plain[section][field] = ",".join(names)
    for section, field in (name.split(".") for name in PRIVATE):
        plain.get(section, {}).pop(field, None)
    plain.pop("processes", None)  # addresses of a cluster
    if model := plain.get("judge", {}).get("model"):
        plain["judge"]["model"] = without_folders(model)
    return plain
