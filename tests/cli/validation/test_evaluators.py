"""What `srpo train` looks at besides the loss: judged answers, and harmless questions."""

import os
import subprocess
import sys

import pytest

from srpo_jax.cli.validation import evaluators as module
from srpo_jax.cli.validation.evaluators import Benign, make_evaluators
from srpo_jax.config.convert import as_config
from srpo_jax.config.load import load_config
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.evaluate import evaluate as eval_module
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.explore.explore import explore
from srpo_jax.files import read_json, read_lines
from srpo_jax.judge.judge import judge
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.registry import load_model_config
from srpo_jax.runs.looks import FILE
from tests.support import ROOT
from tests.support.small_world import ArithmeticArbiter, RecitingEngine, write_world


class Reciting(RecitingEngine):
    """Another line for every question, as greedy answers have no seed."""

    def _answer(self, request):
        number = int(request.name.strip("'")[-1])
        found = self._say(number)
        self.requests.append(request)
        return [found]

    def leave_device(self):
        self.params = None


class Here(ArithmeticArbiter):
    """One that may be asked at once."""

    in_process = True


@pytest.fixture
def config(tmp_path):
    (tmp_path / "world").mkdir()
    found = write_world(tmp_path / "world")
    found.arbiter.kind = f"{__name__}:Here"
    found.data.validation_records = found.data.test_records
    return found


@pytest.fixture
def params(config):
    return load_params(config.model.path, load_model_config(config.model.path))


def test_the_rates_are_those_of_eval_and_judge(config, params, tmp_path, monkeypatch):
    """Of the same answers by the same arbiter: safe, unsafe, cut and unreadable ones."""
    monkeypatch.setattr(module, "Engine", Reciting)
    monkeypatch.setattr(eval_module, "Engine", Reciting)
    records = read_records(config.data.validation_records)
    (look,) = make_evaluators(as_config(config), records, tmp_path)
    found = look(params)
    evaluate(config, tmp_path, "x")
    expected = judge(config, tmp_path, answers="x", arbiter=Here())
    rates = {name: expected[name] for name in found if name != "readable"}
    assert set(rates) <= {*look.names} and "path_safety_rate" in look.names
    assert rates and {name: found[name] for name in rates} == pytest.approx(rates)
    assert found["readable"] == 60 and found["error_rate"] == 40
    assert 0 < found["safety_rate"] < 100
    assert look(params) == found


def test_a_run_waits_for_no_server(config, tmp_path, capsys):
    """An arbiter that is asked elsewhere is left to `srpo judge`, which is said."""
    config.arbiter.kind = "prompted"
    records = read_records(config.data.validation_records)
    assert make_evaluators(as_config(config), records, tmp_path) == []
    assert "arbiter.kind=prompted is not asked during training" in capsys.readouterr().out


def benign(cfg, workdir):
    found = Benign(cfg, workdir)
    found.prepare()
    return found


def test_the_base_policy_agrees_with_itself(config, params, tmp_path, monkeypatch):
    """Every token of its own greedy answers is the one that it would say; another policy's are
    not, and are less likely. The answers are made once, and again for other questions."""
    config.data.benign_records = config.data.test_records
    cfg = as_config(config)
    look = benign(cfg, tmp_path)
    before = look(params)
    assert before["benign_agreement"] == 1.0 and before["benign_perplexity"] >= 1.0
    after = look({**params, "norm": {"scale": -params["norm"]["scale"]}})
    assert after["benign_agreement"] < 1.0
    assert after["benign_perplexity"] > before["benign_perplexity"]

    loads = []
    load = module.load_network
    monkeypatch.setattr(module, "load_network", lambda *a: loads.append(a) or load(*a))
    assert benign(cfg, tmp_path)(params) == before and not loads
    config.eval.validation_questions = 2
    assert benign(as_config(config), tmp_path)(params)["benign_agreement"] == 1.0
    assert len(loads) == 1


# `srpo train` on the paths of the demo's records, looking at all that there is to look at.
LOOKING = {
    "explore.num_questions": 8,
    "objective.lambda_exp": 0.0,
    "mesh.fsdp": -1,
    "pack.row_tokens": 0,
    "pack.rows": 2,
    "train.steps": 2,
    "eval.every": 1,
    "eval.validation_questions": 4,
    "eval.benchmarks": "rsbench",
    "eval.max_new_tokens": 96,
    "data.validation_records": "ssui_mini:test",
    "data.benign_records": "ssui_mini:test",
}


@pytest.mark.slow
@pytest.mark.multi_device
def test_two_processes_look_as_one_does(tmp_path):
    """Trained on the same two devices: the same curves of losses, judged answers, harmless answers
    and a benchmark; each look is counted once, and one process says it.
    """
    file = f"{ROOT}/configs/ssui_mini.py"
    words = [f"--config.{name}={value}" for name, value in LOOKING.items()]
    explore(load_config(file, words), tmp_path / "trees", references_only=True)
    curves, looks = [], []
    for count in (1, 2):
        run = tmp_path / f"run{count}"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "srpo_jax.launch", f"--processes={count}"),
                *(f"--devices={2 // count}", "--submit", "--", "train", f"--config={file}"),
                *(*words, f"--config.data.trees={tmp_path}/trees/trees", f"--workdir={run}"),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PJRT_NPROC": "32"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-3000:]
        assert [said.count(f"rsbench: test questions, look {i}") for i in (1, 2, 3)] == [1] * 3
        rows = [row for row in read_lines(run / "metrics.jsonl") if "validation/loss_ref" in row]
        assert [row["step"] for row in rows] == [0, 1, 2]
        curves.append([{n: v for n, v in row.items() if "validation/" in n} for row in rows])
        looks.append([look["decoding"] for look in read_json(run / FILE)["looks"]])
    names = {"validation/safety_rate", "validation/benign_agreement", "validation/rsbench/judged"}
    assert names <= set(curves[0][0]) and looks[0] == looks[1]
    for one, two in zip(*curves, strict=True):
        assert one == pytest.approx(two, rel=1e-4)
