"""srpo_jax/models/hf/chat.py: what a chat template must not do to a prompt is one clear error."""

from __future__ import annotations

import dataclasses

import pytest

from srpo_jax.data_pipelines.prompt import BARE, Demonstration, Prompt
from srpo_jax.errors import UserError
from srpo_jax.models.hf.chat import Chat
from srpo_jax.models.hf.processor import Processor
from tests.support.tiny import CHAT_TEMPLATE, tiny_qwen2_5_vl

PICTURE = "<|image_pad|>"
TURN = "<|im_start|>{{ m['role'] }}\n%s<|im_end|>\n"
TEXT = "{{ p['text'] }}"
PARTS = (
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<|image_pad|>{% else %}%s{% endif %}"
    "{% endfor %}"
)
LOOP = (
    "{% for m in messages %}"
    + TURN
    + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def looped(text: str = TEXT, parts: str = PARTS) -> str:
    """A sound template, or one that writes texts or parts in another way."""
    return LOOP.replace("%s", parts.replace("%s", text))


FULL = Prompt(
    "Be careful.",
    demos=(Demonstration("d", "What is it?", "<think>\nI look.\n</think>\nA cat.", (b"",)),),
)
IN_FRONT = (
    "{% for p in m['content'] if p['type'] == 'image' %}<|image_pad|>{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }} {% endfor %}"
)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return Processor.from_dir(tiny_qwen2_5_vl(tmp_path_factory.mktemp("chat")))


@pytest.fixture(scope="module")
def render(processor):
    """(template, prompt, question, pictures) -> the rendered text."""

    def run(template, prompt, question, pictures=1):
        chat = Chat(processor._tokenizer, template, PICTURE)
        return chat.render(prompt.messages(question, pictures), processor._cut)[0]

    return run


def test_sound_templates_pass(render):
    """Texts stripped at their ends, system text inside the user's turn, pictures in front of a
    message that does not say where they stand: the prompt means the same."""
    for template in (
        CHAT_TEMPLATE,
        looped(),
        looped("{{ p['text'] | trim }}"),
        looped(parts=IN_FRONT),
        looped().replace("<|im_start|>{{ m['role'] }}\n", "{{ m['role'] | upper }}: "),
    ):
        rendered = render(template, FULL, " And this? \n")
        assert rendered.count(PICTURE) == 2 and "I look.\n</think>\nA cat." in rendered
    gemma = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] }}\n\n"
        "{% else %}{{ m['content'][0]['text'] }}<end>{% endif %}{% endfor %}"
    )
    assert render(gemma, Prompt("Be kind."), "Why?", 0) == "Be kind.\n\nWhy?<end>"


NO_ROLES = looped().replace("<|im_start|>{{ m['role'] }}\n", "")
THOUGHTLESS = "{{ p['text'].split('</think>')[-1] }}"
SOME = "{{ 'No ' if p['text'].startswith('W') else '' }}" + TEXT
ONE_A_PICTURE = "one image placeholder per picture"
# name: (template, prompt, what the error says)
FAULTS = {
    "no question": ("<|im_start|>user\n<|image_pad|><|im_end|>\n", BARE, "leaves out .* question"),
    "a question by chance": ("{{ 'What?' }} <|image_pad|>", BARE, "leaves out or .* the question"),
    "a list": (LOOP.replace("%s", "{{ m['content'] }}"), BARE, "prints the list"),
    "a list as JSON": (LOOP.replace("%s", "{{ m['content'] | tojson }}"), BARE, "prints the list"),
    "no system": (
        "{% set messages = messages[1:] %}" + looped(),
        FULL,
        'the system message.*prompt.system=""',
    ),
    "no thinking in history": (
        looped(THOUGHTLESS),
        FULL,
        "answer of demonstration 1.*demo_layout=text",
    ),
    "glued": (looped().replace("<|im_end|>\n", "ASSISTANT: "), BARE, "glues the question"),
    "run together": (NO_ROLES.replace("<|im_end|>\n", "\n"), FULL, "glues the answer"),
    "turned round": ("{% set messages = messages | reverse | list %}" + looped(), FULL, "moves"),
    "said twice": (looped(TEXT + TEXT), BARE, "the question"),
    "upper case": (looped("{{ p['text'] | upper }}"), BARE, "changes the question"),
    "other words for some": (looped(SOME), BARE, "changes a text"),
    "no picture": (looped().replace("<|image_pad|>", ""), BARE, ONE_A_PICTURE),
    "a picture too many": (looped() + "<|image_pad|>", BARE, ONE_A_PICTURE),
    "fails": ("{{ 1 / 0 }}", BARE, "template failed"),
    "fails at length": (
        "{{ raise_exception('a\x1b[31m\n' + 'c' * 100000) }}",
        BARE,
        "template failed",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_template_that_changes_the_prompt_is_refused(render, name):
    """One short printable line that says what is lost and what to do."""
    template, prompt, says = FAULTS[name]
    with pytest.raises(UserError, match=says) as error:
        render(template, prompt, "What?")
    assert str(error.value).isprintable() and len(str(error.value)) < 300


def test_a_picture_inside_a_text_stays_there(render):
    """Moved to the front it would leave a hole in the sentence."""
    assert f"What is {PICTURE}?" in render(looped(), BARE, "What is <image>?")
    with pytest.raises(UserError, match="moves pictures.*without <image>"):
        render(looped(parts=IN_FRONT), BARE, "What is <image>?")


def test_stripped_thinking_has_a_way_out(render):
    """The same demonstration as text inside the question's message is written whole."""
    by_role = (
        "{% if m['role'] == 'assistant' %}" + THOUGHTLESS + "{% else %}" + TEXT + "{% endif %}"
    )
    template = looped(by_role)
    with pytest.raises(UserError, match="demo_layout=text"):
        render(template, FULL, "What?")
    text = render(template, dataclasses.replace(FULL, layout="text"), "What?")
    assert "I look.\n</think>\nA cat." in text and text.count(PICTURE) == 2


def test_marks_are_never_characters_of_the_texts(render):
    """A question made of the characters that mark texts is rendered as it stands."""
    question = "\ue000a\ue001\ue002 <|image_pad|>\ue003"
    assert question.replace("<|", "<\ue004|") in render(looped(), BARE, question)
