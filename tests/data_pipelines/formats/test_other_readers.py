"""What is written for TRL, LLaMA-Factory and ms-swift is read by their own code.

TRL is in the environment of `make test-all`; the two others in one of their own, `make oracles`, as
they want older libraries. Of ms-swift it holds the reader alone, without what its trainers need.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from srpo_jax.data_pipelines.exchange.exporting import export_items
from srpo_jax.data_pipelines.exchange.item import Item, pair, pairs_of
from srpo_jax.data_pipelines.formats.registry import FORMATS
from tests.support.foreign import CASES, draw, write_rows

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


def oracle_rows(script, folder, tmp_path):
    """The rows that a script prints of a folder, in the environment of `make oracles`."""
    if not ORACLES.exists():
        pytest.skip("`make oracles` has not been run")
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": ""}
    env |= {"MODELSCOPE_CACHE": str(tmp_path / "home"), "ROOT_IMAGE_DIR": str(folder)}
    command = [str(ORACLES), "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama_factory", "llama_factory_alpaca"])
def test_llama_factory_reads_it(tmp_path, name):
    """Its own parser and converter, in its own environment: no row is skipped or loses an answer,
    every picture is found, and there are as many marks as pictures.
    """
    folder = written(tmp_path, name)
    rows = oracle_rows(READ, folder, tmp_path)
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


# Row by row: to write its tables it needs a newer `datasets` than LLaMA-Factory allows.
READ_SWIFT = """
import json, sys
from types import SimpleNamespace as Names
from swift.dataset.preprocessor import AutoPreprocessor
from swift.template.template_inputs import TemplateInputs
from swift.template.vision_utils import load_image

def path(image):
    return image if isinstance(image, str) else image["path"]

found = []
for row in map(json.loads, open(f"{sys.argv[1]}/train.jsonl")):
    reader = AutoPreprocessor()._get_preprocessor(Names(features=row))
    given = {name: [row[name]] for name in row}
    made = reader.batched_preprocess(given, strict=True, ignore_max_length_error=False)
    for each in reader.batched_to_rows(made):
        both = TemplateInputs.from_dict(each)
        found.append({
            "chosen": both.chosen.messages,
            "rejected": both.rejected.messages,
            "sizes": [load_image(path(image)).size for image in both.chosen.images],
            "alike": both.chosen.images == both.rejected.images,
        })
print(json.dumps(found))
"""


@pytest.mark.slow
def test_ms_swift_reads_it(tmp_path):
    """Its own preprocessor, which is strict, and what its templates are given: both answers to the
    same question with the same pictures, which it finds by ROOT_IMAGE_DIR as our README says, and
    as many marks as pictures.
    """
    rows = oracle_rows(READ_SWIFT, written(tmp_path, "ms_swift"), tmp_path)
    questions = ("<image>Clean how?", "Is <image> like <image>?", "No picture?")
    assert [row["sizes"] for row in rows] == [[[56, 56]], [[84, 56], [56, 56]], []]
    for name, answers in {
        "chosen": ("Look.\nThink.\nYes.", "Good", "Fine"),
        "rejected": ("Look.\nThink.\nNo.", "Bad", "Not fine"),
    }.items():
        assert [row[name] for row in rows] == [
            [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
            for q, a in zip(questions, answers)
        ]
    assert all(row["alike"] for row in rows)


@pytest.mark.slow
def test_we_read_rows_as_ms_swift_does(tmp_path):
    """Every way in which it takes a pair (a rejected response, rejected messages, query and
    response, pictures in the content): question, both answers and pictures are those of our import.
    """
    draw(tmp_path)
    case = CASES["ms_swift"]()
    write_rows(tmp_path / "train.jsonl", case.rows)
    theirs = oracle_rows(READ_SWIFT, tmp_path, tmp_path)
    form = FORMATS["ms_swift"]()
    for row, read in zip(case.rows, theirs, strict=True):
        item = form.item(row)
        ((chosen, rejected),) = pairs_of(item)
        asked = read["chosen"][0]["content"]
        assert (asked.removeprefix("<image>"), len(read["sizes"])) == (
            item.question,
            len(item.images),
        )
        assert (chosen.text, rejected.text) == (
            read["chosen"][-1]["content"],
            read["rejected"][-1]["content"],
        )
