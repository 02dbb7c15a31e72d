"""The whole road, end to end: what only holds when all pieces are joined.

On photographs with a tiny random checkpoint, and on the embedded world with the demo's own base
policy (a few steps each; `make demo` walks it at full length).
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from srpo_jax.config.convert import as_config
from srpo_jax.config.dialogue_sections import PromptSettings
from srpo_jax.config.fields import Config
from srpo_jax.config.sections import ModelSettings
from srpo_jax.configs import common, ssui_mini
from srpo_jax.data_pipelines.images import load_record_images
from srpo_jax.data_pipelines.records import read_records
from srpo_jax.data_pipelines.ssui_mini.dataset import build_dataset
from srpo_jax.data_pipelines.ssui_mini.options import Options
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, find_set
from srpo_jax.evaluate.evaluate import evaluate
from srpo_jax.explore.explore import explore
from srpo_jax.export.export import export
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.engine import Engine
from srpo_jax.inference.engine.requests import SampleRequest
from srpo_jax.inference.policy import load_policy
from srpo_jax.judge.judge import judge
from srpo_jax.runs.report.page import write_report
from srpo_jax.train.loop import train
from tests.support.photos import photos

NEW_TOKENS = 112


def greedy(folder, records) -> list[list[int]]:
    """Our greedy continuations of the records' questions by the policy in `folder`."""
    bare = PromptSettings(instruction="none")
    policy = load_policy(Config(model=ModelSettings(path=str(folder)), prompt=bare))
    prompts = [policy.encode(record) for record in records]
    tokens, patches = policy.budgets(records, [0] * len(records))
    engine = Engine(
        policy.model,
        policy.params,
        policy.processor,
        rows=len(records),
        branches=1,
        prompt_tokens=tokens,
        patches=patches,
        max_new_tokens=NEW_TOKENS,
        sampling=Sampling(temperature=0.0),
    )
    empty = np.zeros(0, np.int32)
    return [
        own[0].tokens.tolist()
        for own in engine([SampleRequest(prompt, empty, (0,), (0,)) for prompt in prompts])
    ]


def transformers_greedy(folder, records) -> list[list[int]]:
    """The same by transformers' own model, picture by picture, with the same suppressed ids."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from srpo_jax.models.hf.processor import Processor

    processor = Processor.from_dir(folder)
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    found = []
    for record in records:
        encoded = [processor.image(picture) for picture in load_record_images(record)]
        ids = torch.tensor([processor.prompt_tokens(record.question, [g for _, g in encoded])])
        vision = (
            {}
            if not encoded
            else {
                "pixel_values": torch.tensor(np.concatenate([pixels for pixels, _ in encoded])),
                "image_grid_thw": torch.tensor([grid for _, grid in encoded]),
            }
        )
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == processor.config.image_token_id).int(),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            suppress_tokens=list(processor.suppress_ids),
            eos_token_id=list(processor.eos_ids),
            **vision,
        )
        found.append(out[0, ids.shape[1] :].tolist())
    return found


@pytest.mark.slow  # test_own_questions.py and test_package.py walk this road too
def test_the_road_on_the_embedded_world(tmp_path):
    """Explore, judge, train, export, evaluate, report with the demo's base policy; and the export
    answers 20 held-out questions with pictures as transformers does, token for token."""
    build_dataset(tmp_path / "world", Options(variants=1), ("train", "test"))
    config = ssui_mini.get_config()
    config.data.train_records = str(tmp_path / "world" / "train.jsonl")
    config.data.test_records = str(tmp_path / "world" / "test.jsonl")
    config.explore.num_questions, config.eval.num_questions = 8, 20
    config.train.steps = 3
    run = tmp_path / "run"

    explore(config, run)
    summary = judge(config, run)
    assert summary["questions"] == 8
    assert summary["safe"] and summary["questions_with_pair"]  # able, and unsafe often enough
    train(config, run)
    export(run, run / "export")
    evaluate(config, run, "after", model_dir=run / "export")
    after = judge(config, run, answers="after")
    assert after["n"] == 20 and after["error_rate"] < 20
    page = pathlib.Path(write_report(run)).read_text()
    assert "data:image/png;base64," in page and "<script src" not in page

    before = pathlib.Path(config.model.path, "model.safetensors").read_bytes()
    assert (run / "export" / "model.safetensors").read_bytes() != before
    held_out = read_records(config.data.test_records)[:20]
    assert greedy(run / "export", held_out) == transformers_greedy(run / "export", held_out)


@pytest.mark.slow  # test_own_questions.py walks over photographs
def test_the_road_on_photographs(tmp_path):
    """JPEG photographs and hand-written records: explored, trained on, exported, and read by
    transformers with the same greedy answers. An arbiter that does not know them never says SAFE.
    """
    pytest.importorskip("skimage")
    jsonl = photos.write_photos(tmp_path / "photos")
    base = photos.write_checkpoint(tmp_path / "base")
    config = common.get_config()
    config.model.path = str(base)
    config.data.train_records = config.data.test_records = str(jsonl)
    config.arbiter.kind = "ssui_mini"
    # Whole replies only: 64 branches that nobody can read would end it, and this policy is random.
    config.explore.update(branches=1, max_new_tokens=8, batch=7, shards=2, branch_points="first")
    run = tmp_path / "run"
    explore(config, run)
    summary = judge(config, run)
    trees = JudgedTrees(read_shards(run / "trees"), find_set(run / "trees"))
    assert len(trees) == len(read_records(jsonl))
    assert {branch["reply_verdict"] for tree in trees for branch in tree["branches"]} == {"ERROR"}
    assert summary["references"]["safe"] == 0

    policy = load_policy(as_config(config))
    by_hand = photos.write_trees(tmp_path / "by_hand" / "trees", jsonl, policy.processor)
    config.data.trees = str(by_hand)
    config.train.update(steps=3, learning_rate=1e-3, warmup_steps=0)
    config.pack.rows = 2
    summary = train(config, run)
    assert summary["step"] == 3
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    export(run, run / "export")
    card = (run / "export" / "README.md").read_text()
    assert f"{len(trees)} questions, " in card
    assert "* judge: `by-hand`" in card and "* digest: `digest" in card
    some = [record for record in read_records(jsonl) if record.images][:3]
    assert greedy(run / "export", some) == transformers_greedy(run / "export", some)
