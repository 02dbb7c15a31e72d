"""`srpo export --bake_prompt`: plain questions to the export are the prompt of the training."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from srpo_jax.cli import main as cli
from srpo_jax.config.load import load_config
from srpo_jax.data_pipelines.path_formats.registry import make_format
from srpo_jax.data_pipelines.prompt import BARE, Demonstration, Prompt
from srpo_jax.errors import UserError
from srpo_jax.export.baked_prompt import bake_prompt, baked_template, check_bakeable, reply_start
from srpo_jax.inference.prompting import load_asking
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.hf.prompt_encoder import BAKED, PromptEncoder
from srpo_jax.models.hf.weights_digest import policy_digest
from srpo_jax.models.registry import load_model_config
from srpo_jax.train.checkpoint.manager import Checkpoints
from srpo_jax.train.train_state import TrainState
from tests.support import ROOT
from tests.support.families import CASES
from tests.support.tiny import picture, tiny_qwen2_5_vl

DEMOS = (
    Demonstration("d0", "What is it?", 'I look.\nReply: A "cat" {{ 🙂 }} \\n {% raw %}.'),
    Demonstration("d1", "Why?", "I think.\nReply: So."),
)
PROMPTS = {
    "instruction": Prompt("", "Q: ", "\n\nThink, then write Reply:"),
    "system": Prompt("Be 'kind' and \"careful\" {% endif %} é.", "", "!"),
    "turns": Prompt("Be kind.", "Q: ", "\nThink.", DEMOS),
    "text": Prompt("Be kind.", "Q: ", "\nThink.", DEMOS, "text"),
}


@pytest.fixture(scope="module", params=CASES)
def source(request, tmp_path_factory):
    return CASES[request.param].make(tmp_path_factory.mktemp(request.param))


def tokens_by_transformers(folder, processor, content, grids) -> list[int]:
    """Ids of one user message by the folder's own template and tokenizer, pictures written out."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=Processor.from_dir(folder).chat.source,
        tokenize=False,
        add_generation_prompt=True,
    )
    first, *others = text.split(processor.images.placeholder)
    shown = [processor.images.expansion(g) + more for g, more in zip(grids, others, strict=True)]
    bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return tokenizer("".join([first, *shown]), add_special_tokens=not bos)["input_ids"]


@pytest.mark.parametrize("name", PROMPTS)
def test_a_plain_question_is_the_trained_prompt(source, tmp_path, name):
    """In every family, from a plain text (which some templates cannot take themselves) and from a
    list of parts with a picture, whatever quotes, braces and letters the prompt holds."""
    folder = shutil.copytree(source, tmp_path / "m")
    encoder = PromptEncoder(Processor.from_dir(source), PROMPTS[name])
    bake_prompt(folder, encoder, make_format("lines"), "prompt")
    processor = encoder.processor
    grid = processor.image(picture(112, 84))[1]
    text = {"type": "text", "text": "And {this}?"}
    for content, grids in (("And {this}?", []), ([text], []), ([{"type": "image"}, text], [grid])):
        asked = encoder.prompt.messages("And {this}?", len(grids))
        ours = processor.chat_tokens(asked, grids)
        assert ours == tokens_by_transformers(folder, processor, content, grids)
    assert json.loads((folder / BAKED).read_text())["system"] == PROMPTS[name].system


def test_other_conversations_with_a_baked_template(tmp_path):
    """Every user message has the instruction, the demonstrations come once, a system message that
    is given replaces ours, and other messages stay as they are."""
    source = CASES["qwen3_vl"].make(tmp_path / "m")
    processor = Processor.from_dir(source)
    template = baked_template(processor.chat.source, PROMPTS["turns"])
    messages = [("system", "Mine."), ("user", "A?"), ("assistant", "B."), ("user", "C?")]
    text = processor._tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        chat_template=template,
        tokenize=False,
    )
    said = [turn.removesuffix("<|im_end|>\n") for turn in text.split("<|im_start|>")[1:]]
    demos = [
        f"{role}\n{told}"
        for d in DEMOS
        for role, told in (("user", f"Q: {d.question}\nThink."), ("assistant", d.answer))
    ]
    mine, asked, answered, again = (
        "system\nMine.",
        "user\nQ: A?\nThink.",
        "assistant\nB.",
        "user\nQ: C?\nThink.",
    )
    assert said == [mine, *demos, asked, answered, again]


def test_reply_only_ends_where_the_reply_begins(source, tmp_path):
    """For harnesses that read the whole output: the prompt's last ids are those of an answer that
    has no steps, with the space that the family's template puts in front."""
    folder = shutil.copytree(source, tmp_path / "m")
    encoder = PromptEncoder(Processor.from_dir(source), PROMPTS["instruction"])
    content = bake_prompt(folder, encoder, make_format("lines"), "reply_only")
    asked = encoder.processor.chat_tokens(encoder.prompt.messages("What?", 0), [])
    found = tokens_by_transformers(folder, encoder.processor, "What?", [])
    assert (
        found == asked + encoder.processor.encode("Reply:") and content["reply_start"] == "Reply:"
    )
    whole = encoder.processor.encode("Reply: No.")
    assert whole[: len(found) - len(asked)] == found[len(asked) :]


def test_where_a_reply_begins_with_think_tags(tmp_path):
    """Nothing between the tags; the opening one is left out where the prompt has it already."""

    class Think:
        name, instruction = "think", "{question}"
        markers, opening = ("<think>", "</think>"), "<think>\n"

        def pieces(self, steps, reply):
            return [reply]

    folder = CASES["qwen3_vl"].make(tmp_path / "m")
    for who, expected in (("policy", "<think>\n\n</think>\n\n"), ("prompt", "\n</think>\n\n")):
        tags = {"markers": ("<think>", "</think>"), "opening": "<think>\n"}
        processor = Processor.from_dir(folder, **tags, open=who)
        assert reply_start(Think(), processor) == expected
        copy = shutil.copytree(folder, tmp_path / who)
        encoder = PromptEncoder(processor, PROMPTS["instruction"])
        bake_prompt(copy, encoder, Think(), "reply_only")
        text = processor._tokenizer.decode(tokens_by_transformers(copy, processor, "What?", []))
        assert text.endswith("assistant\n<think>\n\n</think>\n\n")
    with pytest.raises(UserError, match="nothing in front of a reply"):
        form = Think()
        form.opening = ""
        reply_start(form, Processor.from_dir(folder))


def test_what_cannot_be_baked_is_refused(tmp_path):
    """Pictures, a prompt that is not there, an unknown way, control tokens in the texts."""
    folder = tiny_qwen2_5_vl(tmp_path / "m")
    processor = Processor.from_dir(folder)
    shown = Demonstration("d", "q", "a", ((tmp_path / "p.png").name.encode(),))
    for prompt, mode, says in (
        (Prompt(demos=(shown,)), "prompt", "no pictures"),
        (BARE, "prompt", "bare questions"),
        (PROMPTS["turns"], "all", "--bake_prompt=all"),
    ):
        encoder = PromptEncoder(processor)
        encoder.prompt = prompt
        with pytest.raises(UserError, match=says):
            check_bakeable(encoder, mode)
    with pytest.raises(UserError, match="control tokens"):
        told = PromptEncoder(processor, Prompt("Say <|im_end|> twice."))
        bake_prompt(folder, told, make_format("lines"), "prompt")


def test_export_writes_the_prompt_of_the_run(tmp_path, capsys):
    """The command writes, records and tells it; the export is asked bare, and telling it the prompt
    again is refused. A demonstration that is another one now is refused as well."""
    source = tiny_qwen2_5_vl(tmp_path / "base")
    params = load_params(source, load_model_config(source), dtype=np.float32)
    workdir = tmp_path / "run"
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = TrainState(np.int32(1), params, {"count": np.int32(1)})
        checkpoints.save(state, {"seed": 0}, metrics={"loss": 1.0})
    overrides = [f"--config.model.path={source}", "--config.prompt.system=Be kind."]
    config = load_config(f"{ROOT}/configs/ssui_mini.py", overrides)
    asking = load_asking(config, source)
    recorded = {"trees": "abc", "model weights": policy_digest(source)}
    stored = {"config": config.to_dict(), "run": recorded}
    name = "prompt, chat template, tokenizer"
    (workdir / "config.json").write_text(json.dumps({**stored, "run": {**recorded, name: "old"}}))
    argv = ["export", f"--workdir={workdir}", "--bake_prompt"]
    assert cli.main(argv) == 2 and "the prompt of the run was old" in capsys.readouterr().err
    recorded[name] = asking.digest
    (workdir / "config.json").write_text(json.dumps(stored))
    assert cli.main(argv) == 0
    out = workdir / "export"
    assert "chat template has the prompt" in (out / "README.md").read_text()
    assert json.loads((out / BAKED).read_text())["system"] == "Be kind."
    with pytest.raises(UserError, match="has a prompt in it already"):
        load_asking(config, out)
    plain = load_config(f"{ROOT}/configs/ssui_mini.py", [f"--config.model.path={out}"])
    again, before = load_asking(plain, out).encoder, asking.encoder
    assert again.encode("What?", []).tokens.tolist() == before.encode("What?", []).tokens.tolist()
