"""`srpo export --bake_prompt`: the prompt written into the exported chat template.

Who asks the export a plain question then asks it exactly as the policy was trained, with any tool
that renders chat templates. The checkpoint's own template stays as it is; what is put in front of
it rewrites the messages: a system message if there is none, the demonstrations, the instruction
around the text of every user message. `reply_only` also ends every prompt where the reply begins,
for harnesses that read the whole output.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

from srpo_jax.data_pipelines.prompt import BARE, PathFormat, Prompt
from srpo_jax.errors import UserError
from srpo_jax.files import read_json, write_json, write_text
from srpo_jax.models.hf.chat import TEMPLATE_FILES
from srpo_jax.models.hf.processor import Processor
from srpo_jax.models.hf.prompt_encoder import BAKED, PromptEncoder

MODES = ("prompt", "reply_only")
QUESTIONS = (("What is this?", 0), ("What is this?", 1), ("Compare these.\n", 2))

# Names begin with srpo, so that none is the template's own. A plain text becomes a list of parts.
# It ends in an expression: of what follows a block Jinja would cut the first newline.
REWRITE = """\
{%- set srpo = namespace(messages=[], parts=[], texts=0, seen=0, first=true) -%}
{%- if srpo_prompt.system and not (messages and messages[0]['role'] == 'system') -%}
{%- set srpo.messages = [
  {'role': 'system', 'content': [{'type': 'text', 'text': srpo_prompt.system}]}] -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] != 'user' -%}
{%- set srpo.messages = srpo.messages + [message] -%}
{%- else -%}
{%- set before = (srpo_prompt.label if srpo.first else '') ~ srpo_prompt.before -%}
{%- set srpo.parts = [] -%}
{%- if message['content'] is string -%}
{%- set srpo.parts = [{'type': 'text', 'text': message['content']}] -%}
{%- else -%}
{%- for part in message['content'] -%}{%- set srpo.parts = srpo.parts + [part] -%}{%- endfor -%}
{%- endif -%}
{%- set parts = srpo.parts -%}
{%- set srpo.parts = [] -%}
{%- set srpo.texts = 0 -%}
{%- set srpo.seen = 0 -%}
{%- for part in parts -%}
{%- if part['text'] and part['text'] | trim -%}{%- set srpo.texts = srpo.texts + 1 -%}{%- endif -%}
{%- endfor -%}
{%- for part in parts -%}
{%- set told = part -%}
{%- if part['text'] and part['text'] | trim -%}
{%- set srpo.seen = srpo.seen + 1 -%}
{%- set told = {'type': 'text', 'text': (before if srpo.seen == 1 else '') ~ part['text']
  ~ (srpo_prompt.after if srpo.seen == srpo.texts else '')} -%}
{%- endif -%}
{%- set srpo.parts = srpo.parts + [told] -%}
{%- endfor -%}
{%- if srpo.texts == 0 and before ~ srpo_prompt.after -%}
{%- set srpo.parts = srpo.parts + [{'type': 'text', 'text': before ~ srpo_prompt.after}] -%}
{%- endif -%}
{%- if srpo.first and srpo_prompt.examples and srpo.parts[0]['text'] -%}
{%- set srpo.parts = [{'type': 'text', 'text': srpo_prompt.examples ~ srpo.parts[0]['text']}]
  + srpo.parts[1:] -%}
{%- elif srpo.first and srpo_prompt.examples -%}
{%- set srpo.parts = [{'type': 'text', 'text': srpo_prompt.examples}] + srpo.parts -%}
{%- endif -%}
{%- set srpo.messages = srpo.messages + (srpo_prompt.turns if srpo.first else [])
  + [{'role': 'user', 'content': srpo.parts}] -%}
{%- set srpo.first = false -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = srpo.messages -%}
{{- '' }}"""


def bake_prompt(
    folder: pathlib.Path, encoder: PromptEncoder, form: PathFormat, mode: str
) -> dict[str, Any]:
    """Writes the prompt of `encoder` into the chat template of the folder, and BAKED beside it.

    Returns BAKED's content. form: the path format, which says where a reply begins.
    Raises UserError for demonstrations with pictures, and if the template then does not ask plain
    questions, as a text or as a list of parts, with the ids that the policy was trained with.
    """
    prompt, processor = encoder.prompt, encoder.processor
    start = reply_start(form, processor) if mode == "reply_only" else ""
    # What the processor writes behind the template's prompt, or leaves to the answer.
    opening = processor.decode(processor.opening, after_text=True)
    lead = "" if opening else processor.lead * bool(start)
    baked = baked_template(processor.chat.source, prompt, opening + lead + start)
    replace_template(folder, baked)
    _check_alike(folder, encoder, start)
    content = {"mode": mode, **prompt.describe(), "format": form.name, "reply_start": start}
    write_json(folder / BAKED, content)
    return content


def check_bakeable(encoder: PromptEncoder, mode: str) -> None:
    """UserError if there is nothing to write into a template, or something that it cannot hold."""
    if mode not in MODES:
        raise UserError(f"--bake_prompt={mode}: there is {', '.join(MODES)}")
    if any(demo.images for demo in encoder.prompt.demos):
        raise UserError(
            "--bake_prompt: a chat template holds no pictures, and those of prompt.demos are part "
            "of what the policy was trained with; export without it"
        )
    if encoder.prompt == BARE and mode == "prompt" and not encoder.processor.opening:
        raise UserError(
            "--bake_prompt: the policy was trained on bare questions, so there is no prompt to "
            "write; export without it"
        )


def baked_template(source: str, prompt: Prompt, ending: str = "") -> str:
    """The chat template `source` with a prompt in it. ending: what every prompt ends with, besides.

    Messages that come with a system message of their own keep that one.
    """
    in_text = prompt.layout == "text"
    turns = [] if in_text else [m for m in prompt.messages("", 0)[:-1] if m.role != "system"]
    values = {
        "system": prompt.system,
        "turns": [
            {"role": m.role, "content": [{"type": "text", "text": m.texts[0]}]} for m in turns
        ],
        "examples": prompt.shown_text() if in_text else "",
        "label": prompt.question_label() if in_text else "",
        "before": prompt.before,
        "after": prompt.after,
    }
    told = f"{{%- set srpo_prompt = {_literal(values)} -%}}\n"
    if ending:
        source = source.removesuffix("\n")  # as Jinja itself does where a template ends
        source += f"{{%- if add_generation_prompt -%}}{{{{- {_literal(ending)} }}}}{{%- endif %}}"
    return told + REWRITE + source


def _literal(value: Any) -> str:
    # JSON is an expression of Jinja, whose strings take the escapes of Python's and any character.
    return json.dumps(value, ensure_ascii=False)


def reply_start(form: PathFormat, processor: Processor) -> str:
    """The text that an answer without steps has in front of its reply: "Reply:", or think tags with
    nothing between them. UserError for a path format without any."""
    mark = "\ue000"
    found = "".join(form.pieces((), mark)).partition(mark)[0].rstrip(" ")
    if not found and form.opening and len(form.markers) == 2:
        found = f"{form.opening}\n{form.markers[1]}\n\n"
    if processor.opened:
        found = found.removeprefix(form.opening)
    if not found:
        raise UserError(
            f"--bake_prompt=reply_only: the path format {form.name} writes nothing in front of a "
            "reply; use --bake_prompt"
        )
    return found


def replace_template(folder: pathlib.Path, template: str) -> None:
    """Writes the template into every file of the folder that has one, so that all tools, whichever
    of them they read, find the same."""
    for name in TEMPLATE_FILES:
        file = folder / name
        if not file.is_file():
            continue
        if name.endswith(".jinja"):
            write_text(file, template)
            continue
        content = read_json(file)
        if isinstance(content.get("chat_template"), list):
            for entry in content["chat_template"]:
                if entry.get("name") == "default":
                    entry["template"] = template
        elif isinstance(content.get("chat_template"), str):
            content["chat_template"] = template
        else:
            continue
        write_json(file, content)


def _check_alike(folder: pathlib.Path, encoder: PromptEncoder, start: str) -> None:
    """UserError if a plain question to the folder is not the prompt of `encoder`."""
    ours = encoder.processor
    baked = Processor.from_dir(folder, ours.config.family, ours.markers)  # open="auto"
    grid = ours.images.grid(112, 112)
    for question, count in QUESTIONS:
        grids = [grid] * count
        asked = ours.chat_tokens(encoder.prompt.messages(question, count), grids)
        if baked.prompt_tokens(question, grids) != asked + ours.encode(start):
            raise UserError(
                "--bake_prompt: this chat template does not write the prompt as the policy was "
                "trained with it (are there control tokens or think tags in its texts?); export "
                "without it"
            )
    as_text, as_parts = (
        baked.chat.apply([{"role": "user", "content": content}])
        for content in ("What?", [{"type": "text", "text": "What?"}])
    )
    if as_text != as_parts:
        raise UserError("--bake_prompt: this chat template asks plain texts in another way")


def baking(
    encoder: PromptEncoder,
    form: PathFormat,
    mode: str,
    then: Callable[[pathlib.Path], None] | None,
) -> Callable[[pathlib.Path], None]:
    """What an export does with its complete folder: bake the prompt, then the check `then`."""

    def run(folder: pathlib.Path) -> None:
        bake_prompt(folder, encoder, form, mode)
        if then is not None:
            then(folder)

    return run
