"""What `srpo train` looks at besides the loss: judged answers, and harmless questions."""

import pytest

from srpo_jax.cli.validation import evaluators as module
from srpo_jax.cli.validation.evaluators import Benign, make_evaluators
from srpo_jax.config.convert import as_config
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.evaluate import evaluate as eval_module
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.judge.judge import judge
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.registry import load_model_config
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
