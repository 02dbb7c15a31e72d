"""`srpo ask`: one question to a policy, in a terminal; of a trained run before and after."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import shutil
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from srpo_jax.config.convert import stored_config
from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.records import Record
from srpo_jax.errors import UserError
from srpo_jax.export.export import sampling_params
from srpo_jax.inference.engine.drawing import Sampling
from srpo_jax.inference.engine.engine import Engine
from srpo_jax.inference.engine.requests import SampleRequest
from srpo_jax.inference.policy import Policy, load_policy, rows_over
from srpo_jax.runs.workdir import read_config
from srpo_jax.train.checkpoint.seal import steps_in

GAP = 3  # columns between two answers side by side
NARROW = 60  # a terminal of fewer columns than twice this shows answers one below the other


class Answer(NamedTuple):
    """What a policy said. title: whose it is; status: how it could be read."""

    title: str
    steps: tuple[str, ...]
    reply: str | None
    status: str
    text: str


def ask(config: Config, model: str, record: Record, max_new_tokens: int) -> list[Answer]:
    """The answers of `model`: a HF directory, or a workdir, whose policy answers as it was before
    training and as its newest checkpoint is.

    config: how a HF directory is prompted and read; a workdir has its own. Errors: UserError for a
    folder that is neither.
    """
    folder = pathlib.Path(model)
    if steps_in(folder / "checkpoints"):
        config = stored_config(read_config(folder))
        step, params = sampling_params(config, folder)
        policies = [
            ("before", load_policy(config)),
            (f"after, step {step}", load_policy(config, params=params)),
        ]
    elif (folder / "config.json").is_file():
        policies = [(folder.resolve().name, load_policy(config, model_dir=folder))]
    else:
        raise UserError(
            f"--model={model}: neither a HF directory (no config.json) nor a workdir with "
            "checkpoints"
        )
    return [_answer(title, policy, record, max_new_tokens) for title, policy in policies]


def _answer(title: str, policy: Policy, record: Record, max_new_tokens: int) -> Answer:
    tokens, patches = policy.budgets([record], [0])
    engine = Engine(
        policy.model,
        policy.params,
        policy.processor,
        rows=rows_over(policy.mesh, 1),
        branches=1,
        prompt_tokens=tokens,
        patches=patches,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature=0.0),
        mesh=policy.mesh,
    )
    request = SampleRequest(
        policy.encode(record), np.zeros(0, np.int32), (0,), (0,), "the question"
    )
    sample = engine([request])[0][0]
    text = policy.processor.decode(sample.tokens.tolist())
    return Answer(title, *policy.read_turn((), text, finished=sample.finished), text)


def one_record(question: str, image: str) -> Record:
    """The question as a record. Errors: UserError for a picture that is not there."""
    if not question.strip():
        raise UserError("--question=TEXT is missing")
    record = Record("question", (), question, (), "")
    if not image:
        return record
    path = pathlib.Path(image)
    if not path.is_file():
        raise UserError(f"--image={image}: no such file")
    return dataclasses.replace(record, images=(path.name,), root=str(path.resolve().parent))


def show(answers: Sequence[Answer], columns: int = 0) -> str:
    """The answers side by side where `columns` (default: the terminal's) has room for them."""
    columns = columns or shutil.get_terminal_size((120, 24)).columns
    if len(answers) > 1 and columns >= 2 * NARROW:
        width = (columns - GAP * (len(answers) - 1)) // len(answers)
        blocks = [_lines(answer, width) for answer in answers]
        rows = itertools.zip_longest(*blocks, fillvalue="")
        return "\n".join(
            (" " * GAP).join(line.ljust(width) for line in row).rstrip() for row in rows
        )
    return "\n\n".join("\n".join(_lines(answer, min(columns, 100))) for answer in answers)


def _lines(answer: Answer, width: int) -> list[str]:
    lines = [answer.title, "-" * min(width, len(answer.title))]
    if answer.status != "ok":
        lines += textwrap.wrap(f"(read as: {answer.status})", width)
    if answer.reply is None and not answer.steps:
        return lines + _wrapped(answer.text, width, "")
    for number, step in enumerate(answer.steps, 1):
        lines += _wrapped(step, width, f"{number}. ")
    reply = "(no reply)" if answer.reply is None else answer.reply
    return [*lines, "", *_wrapped(reply, width, "Reply: ")]


def _wrapped(text: str, width: int, head: str) -> list[str]:
    indent = " " * min(len(head), 3)
    lines = []
    for i, paragraph in enumerate(_printable(text).split("\n")):
        first = head if i == 0 else indent
        lines += textwrap.wrap(
            paragraph, width, initial_indent=first, subsequent_indent=indent
        ) or [first.rstrip()]
    return lines


def _printable(text: str) -> str:
    """Without what a terminal would take for a command."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
