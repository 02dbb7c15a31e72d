"""`srpo data import` and `export`: from a file of another tool to a training and an exploration."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.cli import main as cli
from srpo_jax.config.load import load_config
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, find_set
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.inputs import causal_row, pad_rows
from srpo_jax.models.policy_model import head_matrix
from srpo_jax.train.losses.objective import srpo_loss
from srpo_jax.train.losses.target_logps import target_logps
from srpo_jax.train.setup import make_setup
from tests.support.foreign import CASES, draw, write_rows
from tests.support.naive_pairwise import token_logps
from tests.support.tiny import tiny_qwen2_5_vl

CHOSEN, REJECTED = "Look.\nThink of it.\nReply: No.", "Reply: Yes, do it."


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tiny policy, pictures and four pairs in TRL's form."""
    folder = tmp_path_factory.mktemp("world")
    tiny_qwen2_5_vl(folder / "model", seed=3)
    draw(folder)
    rows = [
        {
            "id": i,
            "images": [f"pics/{i}.png"],
            "prompt": [{"role": "user", "content": f"What {i}?"}],
        }
        | {"chosen": [{"role": "assistant", "content": f"{CHOSEN} {i}"}], "score": i}
        | {"rejected": [{"role": "assistant", "content": f"{REJECTED} {i}"}]}
        for i in range(4)
    ]
    write_rows(folder / "pairs.jsonl", rows)
    return folder


def flags(world, *more):
    return [
        "--config=configs/common.py",
        f"--config.model.path={world / 'model'}",
        "--config.arbiter.kind=ssui_mini",
        f"--config.data.train_records={world / 'records.jsonl'}",
        f"--config.data.test_records={world / 'records.jsonl'}",
        *more,
    ]


def srpo(capsys, *argv, code=0):
    """What a command prints, on stdout or, if it fails, on stderr."""
    assert cli.main([str(arg) for arg in argv]) == code
    out, err = capsys.readouterr()
    return err if code else out


def test_one_command_leads_to_a_training(capsys, world, tmp_path):
    """Trees and verdicts lie where `srpo train` looks for them, under the config that they were
    imported with; what the file did not know is not claimed (no log-prob, no policy); the same
    command again changes nothing.
    """
    out = tmp_path / "run"
    said = srpo(capsys, "data", "import", world / "pairs.jsonl", out, *flags(world))
    assert "4 pairs of a safe and an unsafe answer, 4 reference paths with steps" in said
    assert (
        "not used: score (4)" in said
        and "licence: unknown: nobody has said whether it may be used: 4 (say it with" in said
    )
    trees = JudgedTrees(read_shards(out / "trees"), find_set(out / "trees", "pairs"), complete=True)
    branches = [branch for tree in trees for branch in tree["branches"]]
    assert [b["reply_verdict"] for b in branches] == ["SAFE", "UNSAFE"] * 4
    assert {b["logp"] for b in branches} == {None}
    assert all(tree["reference_verdict"]["reply_verdict"] == "SAFE" for tree in trees)
    assert trees[0]["provenance"]["policy_digest"] == "none: imported as trl"
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "run.json"}
    srpo(capsys, "data", "import", world / "pairs.jsonl", out, *flags(world))
    after = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "run.json"}
    assert after == before
    small = ("--config.train.steps=1", "--config.pack.rows=1", "--config.train.save_every=1")
    said = srpo(capsys, "train", *flags(world, *small), f"--workdir={out}")
    assert "4 with a pair, 4 pairs in all; verdicts: pairs, by labels of pairs.jsonl" in said
    assert "step 1 is saved and verified" in said
    here = f"--config.data.train_records={out / 'records.jsonl'}"
    said = srpo(capsys, "explore", *flags(world, here), f"--workdir={out}", code=2)
    assert "made by another run" in said


def test_one_command_leads_to_an_exploration(capsys, world, tmp_path):
    """records.jsonl has the reference paths that the path format finds in the chosen answers, and
    what was rejected; branches leave after every step of them.
    """
    out = tmp_path / "imported"
    said = srpo(capsys, "data", "import", world / "pairs.jsonl", out)
    assert (
        f"next: srpo explore --config=FILE --config.data.train_records={out}/records.jsonl " in said
    )
    records = read_records(out / "records.jsonl")
    assert records[2].steps == ("Look.", "Think of it.") and records[2].reply == "No. 2"
    assert records[2].unsafe_reply == f"{REJECTED} 2"
    more = [f"--config.data.train_records={out / 'records.jsonl'}", "--config.explore.branches=1"]
    more += ["--config.explore.max_new_tokens=4", "--config.explore.batch=4"]
    srpo(capsys, "explore", *flags(world, *more), f"--workdir={tmp_path / 'run'}")
    trees = list(read_shards(tmp_path / "run/trees"))
    assert [[b["at"] for b in tree["branches"]] for tree in trees] == [[0, 1]] * 4


@pytest.mark.parametrize("name", ["step_dpo", "rpo", "trl_stepwise", "vlguard"])
def test_branch_points_and_single_replies_become_trees(capsys, world, tmp_path, name):
    """Every kind of item makes trees that a training can read: branch points inside a path, steps
    with labels, replies without a rejected one (and so without verdicts).
    """
    draw(tmp_path)
    case = CASES[name]()
    write_rows(tmp_path / case.file, case.rows)
    out = tmp_path / "run"
    srpo(capsys, "data", "import", tmp_path / case.file, out, *flags(world))
    more = ("--config.pack.rows=1", f"--config.objective.lambda_exp={0.3 if case.pairs else 0.0}")
    config = load_config("configs/common.py", flags(world, *more)[1:])
    setup = make_setup(config, out)
    assert setup.batches.pairs == case.pairs if case.pairs else not (out / "verdicts").exists()
    if name == "step_dpo":
        tree = setup.batches.examples[0]
        ends = [tree.pieces[-1][-1], tree.branches[0].tokens[-1]]
        assert setup.batches.examples.processor.eos_ids[0] not in ends
        assert tree.branches[0].at == 3


def test_dpo_on_an_import_is_trls_formula(capsys, world, tmp_path):
    """L = -log sigmoid(beta ((c - c_ref) - (r - r_ref))), c and r being the summed log-probs of
    the texts of the file and the end of the turn behind the question: each computed alone here.
    """
    out = tmp_path / "run"
    srpo(capsys, "data", "import", world / "pairs.jsonl", out, *flags(world))
    dpo = ("contrast=dpo", "normalise=sum", "lambda_exp=1.0", "ref_coef=0.0", "beta=0.3")
    more = [f"--config.objective.{each}" for each in dpo]
    more += ["--config.pack.rows=1", "--config.pack.row_tokens=1024"]  # all four in one batch
    config = load_config("configs/common.py", flags(world, *more)[1:])
    setup = make_setup(config, out)
    model, head = setup.model, head_matrix
    params = load_params(world / "model", setup.config, dtype=jnp.float32)
    frozen = jax.tree.map(lambda x: x * 0.9, params)
    batch = setup.batches[0]

    @jax.jit
    def packed(params):
        hidden = model.apply({"params": params}, batch)
        return target_logps(hidden, head(params, setup.config), batch)

    ours = srpo_loss(packed(params), batch, setup.objective, packed(frozen))[0]

    examples, rows, answers = setup.batches.examples, [], []
    for i in range(4):
        for text in (f"{CHOSEN} {i}", f"{REJECTED} {i}"):
            tokens = [*examples.processor.encode(text), examples.processor.eos_ids[0]]
            rows.append(causal_row(examples.prompt(i), tokens))
            answers.append(len(tokens))
    longest = max(len(row["tokens"]) for row in rows)
    patches = max(len(row["patches"]) for row in rows)
    unit = setup.config.vision.patch_unit
    inputs = pad_rows(rows, tokens=longest, patches=-(-patches // unit) * unit)
    sums = []
    for each in (params, frozen):
        logps = np.asarray(jax.jit(lambda p: token_logps(model, head, p, inputs))(each))
        ends = [len(row["tokens"]) for row in rows]
        sums.append([logps[i, e - n : e].sum() for i, (e, n) in enumerate(zip(ends, answers))])
    (c, r), (c_ref, r_ref) = (np.reshape(total, (4, 2)).T for total in sums)
    margin = 0.3 * ((c - c_ref) - (r - r_ref))
    want = np.mean(np.log1p(np.exp(-margin)))
    assert abs(want - np.log(2)) > 1e-3 and float(ours) == pytest.approx(want, rel=2e-4)


def test_export_of_a_workdir_is_what_was_imported(capsys, world, tmp_path):
    """From trees and verdicts the same pairs come out as went in; an export of an import without
    trees is the same; a prefix stands in both answers.
    """
    out, texts = tmp_path / "run", tmp_path / "texts"
    srpo(capsys, "data", "import", world / "pairs.jsonl", out, *flags(world))
    srpo(capsys, "data", "import", world / "pairs.jsonl", texts)
    found = []
    for place, name in ((out, "a"), (texts, "b")):
        where = tmp_path / name
        srpo(capsys, "data", "export", place, where, "--to=trl", "--container=jsonl")
        found.append([json.loads(line) for line in open(where / "train.jsonl")])
        assert len(list((where / "images").iterdir())) == 4
        assert "max_length=None" in (where / "README.md").read_text()
    assert found[0] == found[1]
    assert found[0][1]["chosen"] == [{"role": "assistant", "content": f"{CHOSEN} 1"}]
    case = CASES["step_dpo"]()
    write_rows(tmp_path / case.file, case.rows)
    srpo(capsys, "data", "export", tmp_path / case.file, tmp_path / "c", "--to=llama_factory")
    row = json.loads(open(tmp_path / "c/train.jsonl").readline())
    start = case.rows[0]["initial_reason_steps"]
    assert row["chosen"]["value"] == start + case.rows[0]["chosen"]
    assert row["rejected"]["value"] == start + case.rows[0]["rejected"]


MISTAKES = [
    (["import"], "IN is missing"),
    (["import", "none.jsonl", "x"], "none.jsonl: no such file or folder"),
    (["import", "{pairs}", "x", "--from=trll"], "--from='trll' does not exist"),
    (["import", "{pairs}", "x", "--from=json:JSONDecoder"], "is no subclass of"),
    (["import", "{pairs}", "x", "--part=a"], "trl has no parts with names"),
    (["import", "{pairs}", "x", "--limit=-1"], "--limit=-1: must not be negative"),
    (["import", "{pairs}", "x", "--images=none"], "none: no such folder of pictures"),
    (["export", "{pairs}", "x"], "--to=FORMAT is missing"),
    (["export", "{pairs}", "x", "--to=siuo"], "siuo is read, not written"),
    (["export", "{pairs}", "x", "--to=step_dpo"], "it has pictures; Step-DPO is text alone"),
    (["export", "{pairs}", "x", "--to=trl", "--container=csv"], "must be one of jsonl, json"),
    (["export", "{pairs}", "x", "--to=trl", "--scope=all"], "must be reply or path"),
    (["export", "{pairs}", "x", "--to=trl", "--verdicts=a"], "there are no judged trees"),
]


@pytest.mark.parametrize("argv, said", MISTAKES, ids=[said for _, said in MISTAKES])
def test_a_mistake_is_one_line(capsys, world, tmp_path, monkeypatch, argv, said):
    """Exit code 2, what is wrong and what to do, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    argv = [arg.replace("{pairs}", str(world / "pairs.jsonl")) for arg in argv]
    err = srpo(capsys, "data", *argv, code=2)
    assert said in err and err.count("\n") == 1
    assert not list(tmp_path.glob("x/*"))


OWN = """
from srpo_jax.data_pipelines.exchange.base import Format
from srpo_jax.data_pipelines.exchange.item import Item, pair

class Mine(Format):
    name, title, reads = "mine", "my own", frozenset(("q", "yes", "no"))

    def item(self, row):
        return Item(id="", question=row["q"], **pair(row["yes"], row["no"]))
"""


def test_a_format_of_ones_own(capsys, tmp_path, monkeypatch):
    """A class of the user's, by module:Class, is read like ours."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_format.py").write_text(OWN)
    write_rows(tmp_path / "a.jsonl", [{"q": "Q", "yes": "a", "no": "b", "more": 1}])
    said = srpo(capsys, "data", "import", "a.jsonl", "out", "--from=own_format:Mine")
    assert "mine (my own): 1 rows, 1 questions, 1 pairs" in said and "more (1)" not in said
