"""`srpo data import` to trees: every format trains a step, with the loss of other tools' formulas.

What is expected is written out here by hand, text by text, and computed by transformers alone: its
chat template, image processor, tokenizer and model. TRL's ORPO (ORPOTrainer: `losses` and
`policy_nll_loss`) is the formula for pairs, its SFT for replies without a rejected one. The formula
of DPO is in test_importing.py: in the first step of a run it is log 2 whatever the data is.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from srpo_jax.cli import main as cli
from srpo_jax.config.load import load_config
from srpo_jax.data_pipelines.exchange.exporting import export_items
from srpo_jax.data_pipelines.exchange.importing import read_items
from srpo_jax.data_pipelines.formats.registry import FORMATS
from srpo_jax.errors import UserError
from srpo_jax.models.hf.processor import Processor
from srpo_jax.pack.packing import Budgets
from srpo_jax.train.loop import train
from tests.support.families import oracle, reset
from tests.support.foreign import BAD, CASES, GOOD, draw, write_rows
from tests.support.tiny import CHAT_TEMPLATE, IDS, oracle_inputs, tiny_qwen2_5_vl

torch = pytest.importorskip("torch")
LAMBDA = 0.1  # TRL's ORPO calls it beta
QUICK = ("trl", "step_dpo")  # one compilation; the others are slow: some seconds each


class Asked(NamedTuple):
    """content: of the user's message, a number for pics/NUMBER.png. path: what there is to learn.
    pairs: (what stands before both, the better answer, the worse one).
    """

    content: tuple[str | int, ...]
    path: str
    pairs: tuple[tuple[str, str, str], ...] = ()


def one(content: tuple, good: str = GOOD, bad: str = BAD, before: str = "") -> Asked:
    """A question with one pair."""
    return Asked(content, before + good, ((before, good, bad),))


STEPS = "Let us see.\nStep 1: 2*3 is 6.\nStep 2: so 7-6.\n"
WANT: dict[str, tuple[Asked, ...]] = {
    "trl": (one((0, "Clean how?")), one(("Is ", 1, " like ", 2, "?"), "No.", "Yes.")),
    "trl_stepwise": (one(("2+2*3?",), "It is 8.", "It is 9.", "2*3 is 6.\n"),),
    "step_dpo": (
        one(("What is 7-2*3?",), "Step 3: It is 1.", "Step 3: It is 15.", STEPS),
        one(("1+1?",), "2.", "3."),
    ),
    "ms_swift": (
        one((0, "Clean how?")),
        one((1, "And now?"), "Rest.", "Run."),
        one(("Why?",), "It helps.", "No idea."),
    ),
    "llama_factory": (one((0, "Clean how?")), one(("Say\nhello.",), "Hello.", "No.")),
    "llama_factory_alpaca": (one((0, "Clean how?")), one((1, "And now?"), "Rest.", "Run.")),
    "rpo": (
        Asked(
            ("Q",),
            "Look.\nThink.\nYes.",
            (("Look.\nThink.\n", "Yes.", "No."), ("Look.\n", "Hm.\nYes.", "Bah.\nNo.")),
        ),
        one(("R\nit",), "One.", "Two."),
    ),
    "beavertails_v": (one((0, "Clean how?")),),
    "rlhf_v": (one((0, "Clean how?")),),
    "spa_vl": (one((0, "Clean how?")), one((1, "And?"))),
    "mmpr": (one((0, "Clean how?")), one((1, 2, "Same?")), one(("No picture?",))),
    "vlguard": (
        Asked((0, "What is it?"), "A square."),
        Asked((0, "Harm how?"), "I will not say."),
        Asked((1, "Do this?"), "Better not."),
    ),
    "siuo": (Asked((0, "A title?"), "Step back first."),),
    "llava": (Asked((0, "What is it?"), "A square."),),
    "srpo": (one((0, "Clean how?")), one(("Is ", 1, " like ", 2, "?"), "No.", "Yes.")),
    "records": (Asked((0, "Look at it?"), "Look.\nThink.\nNo."),),
}
WITHOUT_ANSWERS = ("mis", "mssbench")
GOES_ON = ("step_dpo",)  # no turn ends behind a step
RECORD: dict[str, Any] = {
    "id": "r",
    "images": ["pics/0.png"],
    "question": "Look at it?",
    "reference": {"steps": ["Look.", "Think."], "reply": "No."},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tiny policy and pictures."""
    folder = tmp_path_factory.mktemp("world")
    tiny_qwen2_5_vl(folder / "model", seed=3)
    draw(folder)
    return folder


def flags(world, *more):
    return [
        f"--config.model.path={world / 'model'}",
        "--config.prompt.instruction=none",
        "--config.arbiter.kind=ssui_mini",
        f"--config.data.train_records={world / 'records.jsonl'}",
        f"--config.data.test_records={world / 'records.jsonl'}",
        *more,
    ]


def file_of(world, name, tmp_path):
    """A file of the format: hand-made rows, or what we write of some."""
    if name == "records":
        return write_rows(world / "records.jsonl", [RECORD])
    others = {"srpo": "trl", "llama_factory_alpaca": "ms_swift"}  # of whose items it is written
    case = CASES[others[name] if name in others else name]()
    path = write_rows(world / case.file, case.rows)
    if name in CASES:
        return path
    assert cli.main(["data", "import", str(path), str(tmp_path / "first")]) == 0
    items = list(read_items(tmp_path / "first/trees.jsonl"))
    if name == "srpo":
        return tmp_path / "first/trees.jsonl"
    form = FORMATS[name]()
    export_items(form, items[:2], tmp_path / "first", tmp_path / "written")
    return tmp_path / "written"


def imported(world, name, tmp_path, code=0):
    """The workdir that an import of this format makes."""
    file, out = file_of(world, name, tmp_path), tmp_path / "run"
    made = ["data", "import", str(file), str(out), f"--from={name}", *flags(world)]
    assert cli.main(made) == code
    return out


@pytest.fixture
def one_shape(monkeypatch):
    """Rows of one size whatever is in them, so that only the first run of a loss compiles."""
    fit = Budgets.fit

    def larger(*args, **settings):
        found = fit(*args, **settings)
        room = {"targets": 320, "segments": 16, "sequences": 16, "pairs": 8, "patches": 96}
        assert all(getattr(found, field) <= most for field, most in room.items()), found
        return dataclasses.replace(found, **room)

    monkeypatch.setattr(Budgets, "fit", larger)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in WANT]
)
def test_every_format_trains_a_step_with_the_loss_of_the_formula(world, tmp_path, one_shape, name):
    """Import, then one step of training: its loss is what transformers' log-probs of the texts of
    the file make by TRL's formula, and something was learnt from it.
    """
    out, want = imported(world, name, tmp_path), WANT[name]
    weight = LAMBDA if any(asked.pairs for asked in want) else 0.0
    assert (out / "verdicts").exists() == bool(weight)
    objective = ("ref_reduction=token", f"lambda_exp={weight}")
    more = [f"--config.objective.{each}" for each in objective]
    more += ["--config.pack.rows=1", "--config.pack.row_tokens=512", "--config.train.steps=1"]
    summary = train(load_config("configs/common.py", flags(world, *more)), out)
    (row,) = [json.loads(line) for line in open(out / "metrics.jsonl")]
    assert row["grad_norm"] > 1e-3
    assert summary["loss"] == pytest.approx(formula(world, want, name not in GOES_ON), rel=2e-4)


def formula(world, want, ended: bool) -> float:
    """The negative log-prob of a token of the paths, and lambda times the loss of a pair, of which
    a question has the mean over its pairs.
    """
    paths, contrasts = [], []
    for asked in want:
        paths.append(answer_logps(world, asked.content, "", asked.path, ended))
        of_pairs = []
        for before, good, bad in asked.pairs:
            chosen, rejected = (
                answer_logps(world, asked.content, before, text, ended).mean()
                for text in (good, bad)
            )
            odds = (chosen - rejected) - (np.log1p(-np.exp(chosen)) - np.log1p(-np.exp(rejected)))
            of_pairs.append(np.log1p(np.exp(-odds)))
        contrasts += [np.mean(of_pairs)] if of_pairs else []
    nll = -np.concatenate(paths).mean()
    return float(nll + LAMBDA * np.mean(contrasts)) if contrasts else float(nll)


def answer_logps(world, content, before: str, answer: str, ended: bool) -> np.ndarray:
    """float64 [n]: transformers' log-probs of the answer's tokens, and of the end of the turn if it
    ended, behind the prompt and what stands before.
    """
    folder = world / "model"
    pictures = [Image.open(world / f"pics/{part}.png") for part in content if type(part) is int]
    tokens = tokenizer(folder)
    prompt = tokens.apply_chat_template(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image"} if type(part) is int else {"type": "text", "text": part}
                    for part in content
                ],
            }
        ],
        tokenize=False,
        add_generation_prompt=True,
        chat_template=CHAT_TEMPLATE,
    )
    if pictures:
        grids = oracle_inputs(folder, [], pictures)["image_grid_thw"].tolist()
        first, *others = prompt.split("<|image_pad|>")
        sizes = [height * width // 4 for _, height, width in grids]
        prompt = first + "".join("<|image_pad|>" * n + more for n, more in zip(sizes, others))
    own = tokens(answer)["input_ids"] + [IDS["<|im_end|>"]] * ended
    given = tokens(prompt)["input_ids"] + tokens(before)["input_ids"]
    model = oracle(folder)
    reset(model)
    with torch.no_grad():
        logits = model(**oracle_inputs(folder, given + own, pictures)).logits[0].double()
    logps = torch.log_softmax(logits, -1)[len(given) - 1 : -1]
    return logps[torch.arange(len(own)), torch.tensor(own)].numpy()


@functools.cache
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_every_format_is_here():
    """A new format needs an expectation above, or has no answers."""
    assert {*WANT, *WITHOUT_ANSWERS, "trl_step_values"} == set(FORMATS)  # which is written alone


@pytest.mark.parametrize("name", WITHOUT_ANSWERS)
def test_questions_without_answers_make_records_and_no_trees(capsys, world, tmp_path, name):
    """With a policy, too: one line says why there is nothing to train on; records.jsonl is there to
    explore with.
    """
    out = imported(world, name, tmp_path, code=2)
    assert "holds no answer to learn from, so no tree can be made" in capsys.readouterr().err
    assert (out / "records.jsonl").is_file() and not (out / "trees").exists()


def test_a_text_that_the_tokenizer_cannot_write_is_named(capsys, world, tmp_path, monkeypatch):
    """Texts are tokenised many at a time: of these the one that cannot be is told, by its question
    and its answer, and no shard of trees is written.
    """
    encode = Processor.encode_all

    def refusing(self, texts, *more, **settings):
        if any("Run." in text for text in texts):
            raise UserError("text that cannot be told from a control token")
        return encode(self, texts, *more, **settings)

    monkeypatch.setattr(Processor, "encode_all", refusing)
    out = imported(world, "ms_swift", tmp_path, code=2)
    said = capsys.readouterr().err
    assert "record 'ms_swift-swift.jsonl:2': answer 1: text that cannot be told from" in said
    assert said.count("\n") == 1 and not list(out.glob("trees/*.array_record"))
