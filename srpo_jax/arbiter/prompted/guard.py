"""The arbiter `guard`: a model that was trained to judge, in the words that it was trained on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.arbiter.chat.messages import ChatBackend, ChatReply, Message, Picture
from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.arbiter.prompted.answers import Answer, Fault
from srpo_jax.arbiter.prompted.guard_file import Guard, load_guard
from srpo_jax.arbiter.prompted.prompted import Prompted
from srpo_jax.arbiter.prompted.rubric import Rubric
from srpo_jax.arbiter.prompted.rubric_file import MAX_BYTES
from srpo_jax.arbiter.verdict import Case
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import read_file

LAYOUT = 1  # count up when the same guard file makes other messages, or is read otherwise


class GuardArbiter(Prompted):
    """Judges by the guard of settings.rubric (srpo_jax/arbiter/guards, or a file); its system
    prompt, where it was trained with one, is the text of the file settings.system. See Prompted.
    """

    takes_opinions = False  # its words are those that it was trained on

    def __init__(
        self,
        settings: JudgeSettings,
        *,
        cache: ReplyCache | None = None,
        allow_upload: bool = False,
        backend: ChatBackend | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        guard = load_guard(settings.rubric)
        self.system = _system(guard, settings.system)
        about = {
            **(about or {}),
            "arbiter": "guard",
            "layout": LAYOUT,
            "system": hashlib.sha256(self.system.encode()).hexdigest() if self.system else "",
            "unknown": list(guard.unknown),
        }
        super().__init__(
            dataclasses.replace(settings, max_tokens=max(settings.max_tokens, guard.max_tokens)),
            cache=cache,
            allow_upload=allow_upload,
            backend=backend,
            rubrics=[guard],
            about=about,
        )

    def messages(
        self, case: Case, rubric: Rubric, pictures: Sequence[Picture]
    ) -> tuple[Message, ...]:
        """See Prompted.messages."""
        assert isinstance(rubric, Guard)
        return rubric.messages(case, pictures, self.system)

    def schema(self, rubric: Rubric, steps: int) -> None:
        """A guard answers in its own form."""

    def read(self, reply: ChatReply, rubric: Rubric, steps: int, asked: str) -> Answer | Fault:
        """See Prompted.read."""
        assert isinstance(rubric, Guard)
        return rubric.read(reply)


def _system(guard: Guard, file: str) -> str:
    if guard.system == "none":
        if file:
            raise UserError(f"judge.system={file!r}: {guard.name} was trained without one")
        return ""
    if not file:
        raise UserError(
            f"{guard.name} needs the system prompt that it was trained with, which does not come "
            f"with srpo_jax: take it from the repository of {guard.models[0]}, and name its file "
            "with judge.system"
        )
    try:
        text = read_file(file, MAX_BYTES).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"judge.system={file!r} cannot be read: {one_line(error, 120)}") from None
    if not text:
        raise UserError(f"judge.system={file!r} is empty")
    return text
