"""The model card: it claims what was trained and measured, names who judged, and leaks nothing."""

import json
import re

import pytest
import yaml

from srpo_jax.buckets.fetch import fetch_folder
from srpo_jax.config.load import load_config
from srpo_jax.export.digests import DIGESTS
from srpo_jax.export.model_card import model_card, public_config
from srpo_jax.judge.results.scores import scores
from srpo_jax.runs.workdir import method
from tests.support import ROOT
from tests.support.bucket_server import serving
from tests.support.report_sample import JUDGE

SPEC = {
    "arbiter": "prompted",
    "model": "/home/someone/judges/big-judge",
    "prompt": 1,
    "parser": 2,
    "temperature": 0.0,
    "logprobs": False,
    "rubrics": [{"name": "path_safety", "sha256": "ab" * 32, "votes": 3, "unsure": "drop"}],
}
PROMPTED = {"arbiter": "prompted", "digest": "c" * 16, "spec": SPEC}
FACTS = {
    "questions": 10,
    "questions_with_pair": 7,
    "pairs": 21,
    "labels": {
        "branches": 200,
        "safe": 100,
        "unsafe": 80,
        "error": 20,
        "unfinished": 5,
        "references": {"safe": 9, "unsafe": 1, "error": 0},
    },
    "verdicts": {"set": "strict", **PROMPTED},
}


def written(folder, facts=FACTS, evaluations=(), **changes):
    """The card of a run with these facts; evaluations: (name, judge or None)."""
    overrides = [f"--config.{name}={value}" for name, value in changes.items()]
    config = load_config(f"{ROOT}/configs/ssui_mini.py", overrides).to_dict()
    folder.mkdir(exist_ok=True)
    stored = {"config": config, "run": {"trees": "f" * 64}, "data": facts}
    (folder / "config.json").write_text(json.dumps(stored))
    row = {"risky": True, "reply_verdict": "SAFE", "path_verdict": "SAFE", "effective": True}
    for name, judge in evaluations:
        (folder / "eval" / name).mkdir(parents=True, exist_ok=True)
        found = {**scores([row]), **({"judge": judge} if judge else {})}
        (folder / "eval" / name / "scores.json").write_text(json.dumps(found))
    return model_card(folder, config, 100)


def test_what_compared_no_pair_is_not_called_srpo(tmp_path):
    """Neither by lambda 0 nor where no branch had its opposite; with pairs it is, with what they
    were, and where nothing was measured the card says that.
    """
    card = written(tmp_path)
    assert "# base_policy: SRPO, odds ratio at every step, lambda 0.3" in card
    assert "tags: [srpo, safety, reasoning]" in card and "run: `ssui-mini-srpo`" in card
    assert "10 questions, 7 of them with a pair of branches, 21 pairs" in card
    assert "of 200 branches 50.0 % safe, 40.0 % unsafe, 10.0 % not judged" in card
    assert "Nothing was measured" in card and "## Evaluation" not in card
    none = {**FACTS, "questions_with_pair": 0, "pairs": 0, "labels": None, "verdicts": None}
    for changes in ({"objective.lambda_exp": 0.0}, {}):
        card = written(tmp_path, none, name="srpo", **changes)
        assert "SRPO" not in card and "tags: [safety, reasoning]" in card
        assert "10 questions; no branch was compared" in card and "run: " not in card
        assert "base_policy: SFT on the reference path" in card
    assert method({"objective": {"lambda_exp": 0.3, "contrast": "dpo"}}, {"pairs": 1}).startswith(
        "DPO on whole replies"
    )


def test_the_judges_are_named_and_not_a_config_word(tmp_path):
    """Of the labels and of every score: arbiter, digest, model, rubrics, sampling and parser. Two
    judges are not compared, and an evaluation without one says so.
    """
    card = written(tmp_path, evaluations=[("before", JUDGE), ("after", PROMPTED)])
    for line in (
        "* labels by:",
        "    * judge: `prompted`",
        "    * verdict set: `strict`",
        f"    * digest: `{'c' * 16}`",
        "    * model: `big-judge`",
        "    * rubrics: `path_safety (sha256 abababababab, votes 3, unsure drop)`",
        "    * sampling: `temperature 0.0, logprobs off`",
        "    * versions: `prompt 1, parser 2`",
        f"| judge | {'d' * 16} | {'c' * 16} |",
        f"* judge `{'d' * 16}`:",
        "    * rules: `1`",
    ):
        assert line in card.splitlines(), line
    assert "not all of one judge" in card and "Nothing was measured" not in card
    assert f"| judge of the training | {'c' * 16} | {'c' * 16} |" in card.splitlines()
    (said,) = [line for line in card.splitlines() if "judged both what the run" in line]
    assert said.startswith("**big-judge judged both")
    card = written(tmp_path, evaluations=[("before", PROMPTED)])
    assert "not all of one judge" not in card
    card = written(tmp_path, evaluations=[("before", None)])
    assert f"| judge | not recorded | {'c' * 16} |" in card and "not all of one judge" in card


def test_how_it_was_asked_and_what_was_trained(tmp_path):
    """Path format, prompt, training on the bare question, frozen parameters and the rule of the
    labels.
    """
    card = written(
        tmp_path,
        **{
            "prompt.system": "Be `careful`.",
            "prompt.train": "bare",
            "train.freeze": '("vision/.*",)',
            "arbiter.scope": "path",
            "arbiter.filter_references": True,
        },
    )
    for part in (
        "* path format: `lines`",
        "system message `Be 'careful'.`, instruction `none`",
        "trained on the bare questions",
        "* not trained: `vision/.*`",
        "safe by its reply and every step of its path",
        "whose reference path was not judged safe were left out",
    ):
        assert part in card, part
    assert "bare questions" not in written(tmp_path)


@pytest.mark.parametrize("base", ["/home/someone/secret", "secret\\someone", "../secret"])
def test_nothing_of_the_machine_is_told(tmp_path, base):
    """Neither folders nor addresses nor names of keys, of any setting."""
    private = {
        "model.path": f"{base}/model",
        "data.train_records": f"{base}/train.jsonl",
        "data.test_records": f"{base}/test.jsonl",
        "data.trees": f"{base}/trees",
        "prompt.demos": f"{base}/demos.jsonl",
        "judge.base_url": "http://secret.example:8000/v1",
        "judge.api_key_env": "SECRET_KEY",
        "judge.model": "/home/someone/secret/big-judge",
        "judge.rubric": f"path_safety,{base}/mine.yaml",
        "judge.cases": f"{base}/cases.jsonl",
        "train.compilation_cache": f"{base}/cache",
        "processes.coordinator": "secret.example:1234",
    }
    card = written(tmp_path, **private)
    assert "secret" not in card.lower() and "someone" not in card
    config = load_config(f"{ROOT}/configs/ssui_mini.py", []).to_dict()
    config["judge"]["rubric"] = f"path_safety,{base}/mine.yaml"
    shown = public_config(config)
    assert shown["judge"]["rubric"] == "path_safety,mine.yaml"
    assert shown["data"]["train_records"] == "ssui_mini:train"


def test_what_a_user_wrote_breaks_no_table_or_block(tmp_path):
    """Backticks, bars and newlines in settings and names stay inside their cell and block."""
    card = written(
        tmp_path,
        evaluations=[("a|b", PROMPTED)],
        **{"prompt.system": "```\n# Title", "name": "a\nb"},
    )
    assert "| a\\|b |" in card and "* run: `a b`" in card
    block = card.split("## Config\n\n")[1].splitlines()
    assert block[0] == "````json" and block[-1] == "````"
    assert json.loads("\n".join(block[1:-1]))["prompt"]["system"] == "```\n# Title"


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


BASE_CARD = """---
license: other
license_name: qwen-research
license_link: https://example.org/LICENSE?a=b#c
language: [en]
---
# Theirs
"""


def test_the_license_and_the_base_model_are_kept(tmp_path, monkeypatch):
    """As the base model's own card says; without a card there is a base and no license."""
    base = tmp_path / "Base-7B"
    card = written(tmp_path / "run", **{"model.path": str(base)})
    assert metadata(card)["base_model"] == "Base-7B" and "license" not in metadata(card)
    base.mkdir()
    (base / "README.md").write_text(BASE_CARD)
    found = metadata(written(tmp_path / "run", **{"model.path": str(base)}))
    assert found["license"] == "other" and found["license_name"] == "qwen-research"
    assert found["license_link"] == "https://example.org/LICENSE?a=b#c"
    assert found["base_model"] == "Base-7B" and "language" not in found
    (base / "README.md").write_text(written(tmp_path / "run", **{"model.path": "/x/First"}))
    (base / DIGESTS).write_text("{}")
    found = metadata(written(tmp_path / "run", **{"model.path": str(base)}))
    assert found["base_model"] == "First"  # a run that began with an export of ours
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there = {f"bucket-a/first/export/{path.name}": path.read_bytes() for path in base.iterdir()}
    with serving(there):
        fetch_folder("gs://bucket-a/first/export")  # as whoever exports has
        card = written(tmp_path / "run", **{"model.path": "gs://bucket-a/first/export"})
    assert metadata(card) == {**found, "base_model": "First"}


@pytest.mark.parametrize(
    "head", ["---\nlicense: [", "---\n- a\n---\n", "---\nlicense: 2020-01-01\n---\n", "\xff", ""]
)
def test_a_base_card_that_cannot_be_read_costs_no_export(tmp_path, head):
    """It says nothing then."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text(head, encoding="latin-1")
    card = written(tmp_path / "run", **{"model.path": str(tmp_path / "base")})
    assert "license" not in metadata(card)


def test_a_model_of_the_hubs_cache_has_its_name(tmp_path):
    """Not that of its snapshot, and no folder of this machine."""
    path = "/home/someone/hub/models--Qwen--Qwen2.5-VL-7B-Instruct/snapshots/" + "ab" * 20
    card = written(tmp_path, **{"model.path": path})
    assert metadata(card)["base_model"] == "Qwen/Qwen2.5-VL-7B-Instruct" and "someone" not in card


FORGED = "x\n\n## Safety\n100 % safe\n---\nlicense: mit\n<script>alert(1)</script> [a](b) | `c`"


def test_no_name_writes_into_the_card(tmp_path):
    """Model, run, evaluations, loss and metrics: each stays one line of words, wherever it is
    shown."""
    plain = written(tmp_path / "plain", evaluations=[("e", PROMPTED)])
    (tmp_path / "run").mkdir()
    row = {"step": 5, "loss": 0.5, FORGED: 0.25}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    name = FORGED.replace("/", "-")
    config = load_config(f"{ROOT}/configs/ssui_mini.py", []).to_dict()
    config["model"]["path"] = f"/models/{name}"
    config["name"] = config["objective"]["contrast"] = FORGED
    written(tmp_path / "run", evaluations=[(name, PROMPTED)])
    card = model_card(tmp_path / "run", config, 100)
    headings = [line for line in card.splitlines() if line.startswith("#")]
    expected = [line for line in plain.splitlines() if line.startswith("#")]
    assert [h.split()[0] for h in headings if "Training" not in h] == [
        h.split()[0] for h in expected
    ]
    assert "## Safety" not in card.splitlines() and metadata(card).get("license") is None
    assert metadata(card)["base_model"] == " ".join(name.split())
    body = card.split("## Config")[0].split("---\n", 2)[2]
    outside_code = re.sub("`[^`\n]*`", "", body)
    assert not re.search(r"(?<!\\)<script|(?<!\\)\[a", outside_code)
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1
