"""Benchmarks among the looks of `srpo train`: the rates of `srpo eval` and `srpo judge`, counted as
looks at test questions, and nothing to choose by."""

import re

import pytest

from srpo_jax.arbiter.verdict import Judgement, Verdict
from srpo_jax.cli.validation.evaluators import make_evaluators
from srpo_jax.config.check import validate
from srpo_jax.config.convert import as_config
from srpo_jax.errors import UserError
from srpo_jax.evaluate import evaluate as eval_module
from srpo_jax.evaluate.benchmarks.registry import find_benchmark
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.files import read_json
from srpo_jax.judge.judge import judge
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.registry import load_model_config
from srpo_jax.runs.looks import FILE
from tests.support.benchmark_items import write_json, write_pictures
from tests.support.small_world import ArithmeticArbiter, RecitingEngine, write_world


class Here(ArithmeticArbiter):
    """One that may be asked at once, and says what RSBench's rates are of."""

    in_process = True

    def _one(self, case):
        found = super()._one(case)
        labels = {"grounded": "holds", "redundant": "lean"}
        return Judgement(found.reply, Verdict.SAFE, found.steps, True, "", labels=labels)


class Reciting(RecitingEngine):
    """Another line for every question, as greedy answers have no seed."""

    def _answer(self, request):
        self.requests.append(request)
        return [self._say(sum(map(ord, request.name)) + k) for k in range(len(request.seeds))]


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(eval_module, "Engine", Reciting)
    (tmp_path / "world").mkdir()
    found = write_world(tmp_path / "world")
    found.arbiter.kind = f"{__name__}:Here"
    found.eval.every, found.eval.benchmarks = 1, "rsbench"
    found.eval.validation_questions = 0
    return found


def params_of(config):
    return load_params(config.model.path, load_model_config(config.model.path))


def look_of(config, workdir):
    (found,) = make_evaluators(as_config(config), [], workdir)
    found.prepare()
    return found


def test_the_rates_are_those_of_eval_and_judge(config, tmp_path, capsys):
    """Of all items, by the same policy and arbiter; the look and that evaluation are one look at
    test, other weights are another one, and a smaller sample is, too."""
    run, params = tmp_path / "run", params_of(config)
    look = look_of(config, run)
    found = look(params)
    assert found == look(params)
    said = capsys.readouterr().out
    assert said.count("rsbench: test questions, look 1 of") == 2
    evaluate(config, run, "rsbench", benchmark="rsbench", params=params)
    assert "rsbench: test questions, look 1 of" in capsys.readouterr().out
    result = judge(
        config, run, answers="rsbench", arbiter=Here(), benchmark=find_benchmark("rsbench")
    )
    expected = {
        f"rsbench/{name}": rate["value"]
        for name, rate in result["metrics"].items()
        if rate["value"] is not None
    }
    assert found == pytest.approx(expected)
    assert 0 < found["rsbench/reply_safe"] < 100 and 0 < found["rsbench/judged"] < 100
    look({**params, "norm": {"scale": -params["norm"]["scale"]}})
    config.eval.validation_questions = 4
    small = look_of(config, run)
    assert len(small._tasks[0][0].records) == 4
    small(params)
    assert len(read_json(run / FILE)["looks"]) == 3


def test_options_are_chosen_and_judged_by_their_key(config, tmp_path):
    """A benchmark with an arbiter of its own, beside another, whatever arbiter the config names."""
    write_pictures(tmp_path / "mcqa", "a.png")
    item = {"question_id": 1, "image": "a.png", "question": "What now?", "category": "morality"}
    items = [
        {**item, "question_id": i, "options": dict.fromkeys("ABCD", "x"), "correct_option": letter}
        for i, letter in enumerate("ABCD")
    ]
    write_json(tmp_path / "mcqa" / "siuo_mcqa.json", items)
    config.arbiter.kind = "prompted"
    config.eval.benchmarks = "siuo_mcqa"
    config.eval.benchmark_data = f"siuo_mcqa={tmp_path / 'mcqa'}"
    found = look_of(config, tmp_path / "run")(params_of(config))
    assert found == {"siuo_mcqa/correct": 25.0}  # one letter is the likeliest, of all four alike


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"arbiter.kind": "prompted"},
            "config.eval.benchmarks has rsbench, but its judge, arbiter.kind=prompted, is not asked"
            " during training: .*srpo eval --benchmark=rsbench",
        ),
        ({"eval.benchmarks": "rsbensh"}, "config.eval.benchmarks='rsbensh' does not exist; .*rsb"),
        ({"eval.benchmarks": "siuo,siuo"}, "config.eval.benchmarks=siuo,siuo: one is named twice"),
        ({"eval.benchmarks": "siuo"}, "config.eval.benchmark_data=DIR is missing: siuo is to be"),
        (
            {"eval.benchmark_data": "nowhere"},
            "config.eval.benchmark_data: nowhere does not exist; for rsbench it holds records",
        ),
        ({"eval.benchmark_data": "a=b"}, "config.eval.benchmark_data=a=b: must be a folder"),
        ({"eval.samples": 2}, "2 answers to a question at temperature 0 are the same"),
    ],
)
def test_what_cannot_be_looked_at_is_told_first(config, tmp_path, changes, said):
    """When the looks are made, which a dry run does, too, and in one line."""
    for name, value in changes.items():
        section, leaf = name.split(".")
        config[section][leaf] = value
    with pytest.raises(UserError, match=said) as error:
        make_evaluators(as_config(config), [], tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run" / FILE).exists()


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"train.best_metric": "validation/rsbench/reply_safe", "train.patience": 2},
            "'validation/rsbench/reply_safe': a benchmark is a test set, so it chooses no "
            "checkpoint and ends no run",
        ),
        ({"eval.every": 0}, "eval.benchmarks is 'rsbench' but config.eval.every is 0"),
        (
            {"eval.benchmarks": "", "eval.benchmark_data": "x"},
            "eval.benchmark_data is 'x' but config.eval.benchmarks is empty",
        ),
    ],
)
def test_a_config_that_asks_for_less_or_more(config, changes, said):
    """No benchmark chooses; what is named is looked at."""
    validate(config)
    for name, value in changes.items():
        section, leaf = name.split(".")
        config[section][leaf] = value
    with pytest.raises(UserError, match=re.escape(said)):
        validate(config)
