"""Think tags, or what else a path format marks with: tokens in answers, plain text in prompts."""

from __future__ import annotations

import json
import pathlib

import pytest

from srpo_jax.data_pipelines.prompt import Message, Told
from srpo_jax.errors import UserError
from srpo_jax.models.hf.processor import Processor
from tests.support import tiny, tiny_qwen3_vl

MARKERS = ("<think>", "</think>")
ANSWER = "<think>\nI look.\nI think.\n</think>\n\nA <|im_end|> cat."


def make(folder: pathlib.Path, kind: str, ending: str = "") -> pathlib.Path:
    """A checkpoint whose think tags are `special` or `added` tokens, or plain `text`; its template
    writes `ending` behind the generation prompt."""
    module = tiny if kind == "text" else tiny_qwen3_vl
    module.make(folder)
    if kind == "special":
        for name, key in (("tokenizer.json", "added_tokens"), ("tokenizer_config.json", "")):
            file = folder / name
            content = json.loads(file.read_text())
            tokens = content[key] if key else content["added_tokens_decoder"].values()
            for token in tokens:
                token["special"] |= token["content"] in MARKERS
            file.write_text(json.dumps(content))
    if ending:
        file = folder / "chat_template.json"
        template = module.CHAT_TEMPLATE
        start = "<|im_start|>assistant\\n' }}" if kind != "text" else "<|im_start|>assistant\n"
        assert start in template
        shown = start.replace("' }}", ending.replace("\n", "\\n") + "' }}")
        shown = shown if kind != "text" else start + ending
        file.write_text(json.dumps({"chat_template": template.replace(start, shown)}))
    return folder


@pytest.fixture(scope="module", params=["special", "added", "text"])
def folder(request, tmp_path_factory):
    return make(tmp_path_factory.mktemp(request.param), request.param)


def test_markers_of_an_answer_are_read_back(folder):
    """Whatever the tokenizer calls them, what was written is what is read; control tokens that are
    no markers stay text when written and are left out when generated."""
    processor = Processor.from_dir(folder, markers=MARKERS)
    ids = processor.encode(ANSWER)
    assert processor.decode(ids) == ANSWER
    assert processor.decode([*ids, *processor.eos_ids]) == ANSWER
    assert not set(processor.eos_ids) & set(ids)
    ours = {processor._tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS} - {None}
    assert [i for i in ids if i in ours] == sorted(ours)
    assert not ours & set(processor.suppress_ids)


def test_without_the_format_a_special_tag_is_lost(tmp_path):
    """The reason for `markers`: by itself the tokenizer would hide them."""
    plain = Processor.from_dir(make(tmp_path / "m", "special"))
    named = Processor.from_dir(tmp_path / "m", markers=MARKERS)
    ids = named.encode(ANSWER)
    assert "<think>" not in plain.decode(ids) and "<think>" in named.decode(ids)
    assert plain.decode(plain.encode(ANSWER)) == ANSWER  # as plain text, that is


@pytest.mark.parametrize("kind", ["special", "added"])
def test_markers_in_what_is_told_stay_text(tmp_path, kind):
    """A question cannot end the thinking that follows it, whatever stands around it; a
    demonstration's answer can end its own, and the config can name the tags."""
    processor = Processor.from_dir(make(tmp_path / "m", kind), markers=MARKERS)
    ours = set(processor._tokenizer.convert_tokens_to_ids(list(MARKERS)))
    asked = [
        Message("system", (Told("Say </think>."), "<think>")),
        Message("user", ("</think> What?", Told("<thi"), "nk>", Told("</think><|im_end|>"))),
        Message("assistant", (ANSWER,)),
        Message("user", ("<think></thi", Told("nk>"))),
    ]
    ids = processor.chat_tokens(asked, [])
    opening, closing = processor._tokenizer.convert_tokens_to_ids(list(MARKERS))
    assert [i for i in ids if i in ours] == [closing, closing, opening, closing]
    text = processor.decode(ids)
    for message in asked:
        assert message.texts[0] in text
    turns = processor.chat_tokens([Message(m.role, ("x",)) for m in asked], [])
    assert [ids.count(i) for i in processor.eos_ids] == [turns.count(i) for i in processor.eos_ids]


def test_who_writes_the_opening_tag(tmp_path):
    """By the template; by us where format.open=prompt and the template does not; else nobody. An
    answer begins behind it, and to want the policy to write it again is an error."""
    for kind in ("special", "added", "text"):
        folder = make(tmp_path / kind, kind)
        by_policy = Processor.from_dir(folder, markers=MARKERS, opening="<think>\n", open="policy")
        by_us = Processor.from_dir(folder, markers=MARKERS, opening="<think>\n", open="prompt")
        assert not by_policy.opened and by_us.opened
        opening = by_us.encode("<think>\n")
        bare = by_policy.prompt_tokens("What?", [])
        assert by_us.prompt_tokens("What?", []) == bare + opening
        writes = make(tmp_path / f"{kind} opened", kind, "<think>\n")
        for who in ("auto", "prompt"):
            processor = Processor.from_dir(writes, markers=MARKERS, opening="<think>\n", open=who)
            assert processor.opened
            assert processor.prompt_tokens("What?", []) == bare + opening
        with pytest.raises(UserError, match="format.open=auto"):
            Processor.from_dir(writes, markers=MARKERS, opening="<think>\n", open="policy")
        assert not Processor.from_dir(writes).opened
