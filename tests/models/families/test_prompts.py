"""All families: where an answer begins, and whole conversations, equal the chat template's own."""

from __future__ import annotations

import pytest

from srpo_jax.data_pipelines.prompt import BARE, Demonstration, Message, Picture, Prompt
from srpo_jax.errors import UserError
from srpo_jax.models.hf.processor import Processor
from tests.support import tiny_llava_next
from tests.support.families import CASES, Case

ANSWERS = ("Step 1: look here.\nReply: a cat", "a", " two  spaces", "\nnew line", "你好")
ALL = {**CASES, "vicuna": Case("vicuna", tiny_llava_next, (("decoder", "llama"),), True)}


@pytest.fixture(scope="module", params=ALL)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def processor(family, tmp_path_factory):
    return Processor.from_dir(ALL[family].make(tmp_path_factory.mktemp(family)))


def theirs(processor, messages: list[Message], grids=(), **options) -> list[int]:
    """Ids of the messages by transformers' template and tokenizer, pictures written out."""
    tokenizer, images = processor._tokenizer, processor.images
    written = [
        {
            "role": message.role,
            "content": [
                {"type": "image"} if isinstance(part, Picture) else {"type": "text", "text": part}
                for part in message.joined
            ],
        }
        for message in messages
    ]
    text = tokenizer.apply_chat_template(
        written, chat_template=processor.chat.source, tokenize=False, **options
    )
    first, *others = text.split(images.placeholder)
    text = first + "".join(
        images.expansion(g) + more for g, more in zip(grids, others, strict=True)
    )
    bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return tokenizer(text, add_special_tokens=not bos)["input_ids"]


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_begins_as_in_the_template(family, processor, answer):
    """Prompt and answer, encoded apart, are the ids of the conversation in one: with the space that
    some templates put in front, which is no part of the answer that is read."""
    own = processor.prompt_tokens("What?", []) + processor.encode(answer)
    told = [*BARE.messages("What?", 0), Message("assistant", (answer,))]
    whole = theirs(processor, told)
    if family == "vicuna":  # its template glues answers to questions, but no new one
        own = processor.encode(answer)
        whole = whole[-len(own) - 1 :]  # </s> ends them
    assert own == whole[: len(own)]
    assert processor.decode(processor.encode(answer)) == answer


def test_a_conversation_is_the_templates(family, processor):
    """System, a demonstration and the question with a picture: transformers' ids, in turns and in
    one message, which Vicuna's template needs because it glues turns together."""
    demo = Demonstration("d", "What is it?", "I look.\nReply: A cat.")
    grid = processor.image(ALL[family].pictures(1)[0])[1]
    for layout in ("turns", "text"):
        told = Prompt("Be careful.", "Q: ", "\nThink.", (demo,), layout).messages("And this?", 1)
        if layout == "turns" and family == "vicuna":
            with pytest.raises(UserError, match="glues .*demo_layout=text"):
                processor.chat_tokens(told, [grid])
            continue
        expected = theirs(processor, told, [grid], add_generation_prompt=True)
        assert processor.chat_tokens(told, [grid]) == expected
