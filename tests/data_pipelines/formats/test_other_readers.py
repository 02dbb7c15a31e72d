"""What is written for TRL and LLaMA-Factory is read by their own code.

TRL is in the environment of `make test-all`; LLaMA-Factory in one of its own, `make oracles`.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from srpo_jax.data_pipelines.exchange.exporting import export_items
from srpo_jax.data_pipelines.exchange.item import Item, pair
from srpo_jax.data_pipelines.formats.registry import FORMATS
from tests.support.foreign import draw

ORACLES = pathlib.Path(sys.prefix, "oracles", "bin", "python")
QUESTIONS = ("Clean how?", "Is <image> like <image>?", "No picture?")
PREFIX = ("Look.\n", "Think.\n")


def written(tmp_path, name, count=3):
    """An export of three questions: with one picture, with two between words, and with none."""
    draw(tmp_path)
    items = [
        Item("a", QUESTIONS[0], ("pics/0.png",), **pair("Yes.", "No.", PREFIX)),
        Item("b", QUESTIONS[1], ("pics/1.png", "pics/2.png"), **pair("Good", "Bad")),
        Item("c", QUESTIONS[2], (), license="MIT", **pair("Fine", "Not fine")),
    ]
    export_items(FORMATS[name](), items[:count], tmp_path, tmp_path / name)
    return tmp_path / name


@pytest.mark.slow
def test_trl_reads_it(tmp_path, monkeypatch):
    """As a data set of datasets with decoded pictures; every picture gets its place in the prompt,
    and TRL takes the rows for conversations with pictures.
    """
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    data_utils = pytest.importorskip("trl.data_utils")
    file = str(written(tmp_path, "trl") / "train.parquet")
    data = datasets.load_dataset("parquet", data_files=file, split="train")
    assert len(data) == 3 and data_utils.is_conversational(data[0])
    shown = []
    for row in data:
        (message,) = data_utils.prepare_multimodal_messages(row["prompt"], images=row["images"])
        shown.append(
            "".join(
                part["text"] if part["type"] == "text" else f"<{part['image'].size}>"
                for part in message["content"]
            )
        )
        for side in ("chosen", "rejected"):
            (reply,) = data_utils.prepare_multimodal_messages(row[side])
            assert reply["role"] == "assistant" and reply["content"][0]["text"]
    assert shown == [
        "<(56, 56)>Clean how?",
        "Is <(84, 56)> like <(56, 56)>?",
        "No picture?",
    ]
    assert data[0]["chosen"][0]["content"] == "Look.\nThink.\nYes."


READ = """
import json, sys
from types import SimpleNamespace as Names
from datasets import load_dataset
from llamafactory.data.converter import align_dataset
from llamafactory.data.parser import get_dataset_list

folder = sys.argv[1]
(attributes,) = get_dataset_list(["srpo_pairs"], folder)
file = f"{folder}/{attributes.dataset_name}"
data = load_dataset("json", data_files=file, split="train", cache_dir=f"{folder}/cache")
settings = Names(
    media_dir=folder, streaming=False, preprocessing_num_workers=1, overwrite_cache=True
)
rows = list(align_dataset(data, attributes, settings, Names(local_process_index=0)))
print(json.dumps(rows))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama_factory", "llama_factory_alpaca"])
def test_llama_factory_reads_it(tmp_path, name):
    """Its own parser and converter, in its own environment: no row is skipped or loses an answer,
    every picture is found, and there are as many marks as pictures.
    """
    if not ORACLES.exists():
        pytest.skip("`make oracles` has not been run")
    folder = written(tmp_path, name)
    command = [str(ORACLES), "-c", READ, str(folder)]
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["_response"][0]["content"] for row in rows] == [
        "Look.\nThink.\nYes.",
        "Good",
        "Fine",
    ]
    assert [row["_response"][1]["content"] for row in rows][0] == "Look.\nThink.\nNo."
    for row in rows:
        pictures = row["_images"] or []
        assert row["_prompt"][0]["content"].count("<image>") == len(pictures)
        assert all(pathlib.Path(picture).is_file() for picture in pictures)
