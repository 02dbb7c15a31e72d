"""RSBench in Inspect AI: the counts of `srpo eval` and `srpo judge`, for the same answers."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import threading

import pytest

from srpo_jax.arbiter.chat.messages import ChatReply
from srpo_jax.config.load import load_config
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.evaluate.benchmarks.registry import benchmark_of
from srpo_jax.evaluate.benchmarks.rsbench import MINI
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.evaluate.served import Server
from srpo_jax.judge.judge import judge
from tests.export.test_serve import exported
from tests.support.families import CASES as FAMILIES
from tests.support.transformers_serve import NEEDED, serving

inspect_ai = pytest.importorskip("inspect_ai", reason="comes with the extra `inspect`")

CONFIG = """
from srpo_jax.configs import common


def get_config():
    config = common.get_config()
    config.arbiter.kind = "scripted"
    config.judge.cases = {cases!r}
    config.eval.max_new_tokens = 9
    return config.lock()
"""
TINY = """
from srpo_jax.configs import common


def get_config():
    config = common.get_config()
    config.model.path = {model!r}
    config.format.kind = "free"
    config.prompt.instruction = "none"
    config.arbiter.kind = "scripted"
    config.judge.cases = {cases!r}
    config.eval.max_new_tokens = 12
    return config.lock()
"""
GOOD = {"grounded": "holds", "redundant": "lean"}
CASES = [
    {"contains": "Yes", "reply_verdict": "UNSAFE", "path_verdict": "SAFE", "labels": GOOD},
    {"contains": "No", "reply_verdict": "SAFE", "path_verdict": "UNSAFE", "labels": GOOD},
    {"contains": "", "reply_verdict": "SAFE", "path_verdict": "SAFE", "effective": True},
]
LINES = ("Look.\nReply: Yes.", "Look.\nReply: No.", "Look.\nReply: Well.", "Nothing", "Cut")


def line(question: str) -> str:
    """What the model under test says: a function of the question."""
    return LINES[len(question) % len(LINES)]


class Backend:
    """The model as a back end of ours."""

    host = "localhost"

    def complete(self, requests, on_reply=None):
        found = []
        for i, request in enumerate(requests):
            (question,) = [text for text in questions() if text in request.text()]
            text = line(question)
            reason = "length" if text == "Cut" else "stop"
            found.append(ChatReply(text, finish_reason=reason))
            on_reply(i, found[-1])
        return found


def questions() -> list[str]:
    return [record.question for record in read_records(MINI / "records.jsonl")]


def model():
    """The same model, of Inspect's."""
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    def answer(input, tools, tool_choice, config):
        assert config.max_tokens == 9 and config.temperature == 0 and not config.cache
        (message,) = input
        image, text = message.content
        assert image.image.startswith("data:image/jpeg;base64,")
        (question,) = [each for each in questions() if each in text.text]
        said = line(question)
        stop = "max_tokens" if said == "Cut" else "stop"
        output = ModelOutput.from_content("mockllm", said, stop_reason=stop)
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return output

    return get_model("mockllm/model", custom_outputs=answer)


@pytest.fixture
def config(tmp_path):
    cases = tmp_path / "cases.jsonl"
    cases.write_text("\n".join(map(json.dumps, CASES)))
    (tmp_path / "mine.py").write_text(CONFIG.format(cases=str(cases)))
    return tmp_path / "mine.py"


def inspected(config, asked, tmp_path):
    """The log of the task, run by Inspect."""
    from srpo_jax.evaluate.inspect_tasks import rsbench

    found = []

    def run():  # pytest may run on a loop of its own
        asyncio.set_event_loop(asyncio.new_event_loop())
        logs = str(tmp_path / "logs")
        found.extend(
            inspect_ai.eval(rsbench(str(config)), model=asked, log_dir=logs, display="none")
        )

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    (log,) = found
    assert log.status == "success", log.error
    return log


def test_counts_are_those_of_our_own_road(config, tmp_path, capsys):
    """Every rate, and every line of generations.jsonl but for whose answer it is."""
    log = inspected(config, model(), tmp_path)
    cfg = load_config(str(config), unused={"model.path", "data.train_records", "data.test_records"})
    folder = evaluate(
        cfg, tmp_path, "rsbench", benchmark="rsbench", server=Server("m", backend=Backend())
    )
    benchmark = benchmark_of(str(tmp_path), "rsbench")
    ours = judge(cfg, tmp_path, answers="rsbench", benchmark=benchmark)
    (score,) = log.results.scores
    theirs = {name: metric.value for name, metric in score.metrics.items()}
    metrics = {name: rate["value"] for name, rate in ours["metrics"].items() if rate["n"]}
    assert theirs == pytest.approx(metrics) and len(theirs) > 10
    rows = [json.loads(text) for text in (folder / "generations.jsonl").read_text().splitlines()]
    by_id = {sample.id: sample.scores["verdicts"] for sample in log.samples}
    assert {row["id"]: row for row in rows} == {
        name: score.metadata["row"] for name, score in by_id.items()
    }
    assert {row["reply_verdict"] for row in rows} == {"SAFE", "UNSAFE", "ERROR"}
    judged_by = log.eval.metadata["judge"]
    assert judged_by["digest"] == ours["judge"]["digest"]


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, NEEDED)), reason=f"needs {', '.join(NEEDED)}"
)
def test_a_tiny_export_says_the_same_to_both(tmp_path):
    """Behind `transformers serve`, asked by `srpo eval` and through Inspect: the same texts, the
    same verdicts, the same rates.
    """
    from inspect_ai.model import get_model

    folder, _, _ = exported(FAMILIES["qwen2_5_vl"], tmp_path)
    cases = tmp_path / "cases.jsonl"
    script = [{"contains": "a", "reply_verdict": "UNSAFE"}, {"reply_verdict": "SAFE"}]
    cases.write_text("\n".join(map(json.dumps, script)))
    (tmp_path / "tiny.py").write_text(TINY.format(cases=str(cases), model=str(folder)))
    cfg = load_config(str(tmp_path / "tiny.py"), unused={"data.train_records", "data.test_records"})
    with serving(folder, tmp_path, plain=False) as url:
        asked = get_model(f"openai-api/local/{folder}", base_url=f"{url}/v1", api_key="none")
        log = inspected(tmp_path / "tiny.py", asked, tmp_path)
        server = Server(str(folder), f"{url}/v1")
        evaluate(cfg, tmp_path, "rsbench", benchmark="rsbench", server=server)
    benchmark = benchmark_of(str(tmp_path), "rsbench")
    ours = judge(cfg, tmp_path, answers="rsbench", benchmark=benchmark)
    text = (tmp_path / "eval" / "rsbench" / "generations.jsonl").read_text()
    rows = {row["id"]: row for row in map(json.loads, text.splitlines())}
    assert len({row["text"] for row in rows.values()}) > 5
    assert rows == {s.id: s.scores["verdicts"].metadata["row"] for s in log.samples}
    (score,) = log.results.scores
    metrics = {name: rate["value"] for name, rate in ours["metrics"].items() if rate["n"]}
    assert {name: found.value for name, found in score.metrics.items()} == metrics
