"""The arbiters `policy` and `guard`, made of settings: a model here, or for a guard at a server."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from srpo_jax.arbiter.chat.messages import ChatBackend
from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.arbiter.prompted.guard import GuardArbiter
from srpo_jax.arbiter.prompted.guard_file import load_guard
from srpo_jax.arbiter.prompted.prompted import Prompted
from srpo_jax.arbiter.prompted.rubric import Rubric
from srpo_jax.arbiter.prompted.rubric_file import load_rubrics
from srpo_jax.config.fields import Config
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.errors import UserError


def policy_judge(
    settings: JudgeSettings,
    *,
    config: Config | None = None,
    cache: ReplyCache | None = None,
    rubrics: Sequence[Rubric] = (),
) -> Prompted:
    """A checkpoint as a judge by rubrics: settings.model is its HF directory, settings.answer how
    it answers. config: whose model section says dtype, attention and family, and whose mesh it is
    laid out over. rubrics: instead of those that the settings name. Errors: UserError for settings,
    and for a folder that cannot be loaded.
    """
    rubrics = [*rubrics] or load_rubrics(settings.rubric)
    labels = settings.answer == "labels"
    if labels:
        rubrics = [rubric.labels_only() for rubric in rubrics]
        if settings.temperature or settings.votes > 1 or any(r.votes > 1 for r in rubrics):
            raise UserError(
                "judge.answer=labels takes the likeliest label, so that temperature and votes mean "
                "nothing: set judge.temperature=0 and judge.votes=1, or judge.answer=generate"
            )
    named, backend = _in_process(settings, config, labels=labels)
    named = dataclasses.replace(named, logprobs=labels, structured="auto" if labels else "off")
    about = {"arbiter": "policy", "answer": settings.answer}
    return Prompted(named, cache=cache, backend=backend, rubrics=rubrics, about=about)


def guard_judge(
    settings: JudgeSettings,
    *,
    config: Config | None = None,
    cache: ReplyCache | None = None,
    allow_upload: bool = False,
    backend: ChatBackend | None = None,
) -> GuardArbiter:
    """A guard model: here, if settings.model is a folder, else asked at settings.base_url.

    Errors: UserError as of policy_judge, and for a guard that cannot be an arbiter.
    """
    load_guard(settings.rubric)  # what is wrong with it is told before a model is looked for
    if runs_here(settings):
        settings, backend = _in_process(settings, config, labels=False)
    return GuardArbiter(settings, cache=cache, allow_upload=allow_upload, backend=backend)


def runs_here(settings: JudgeSettings) -> bool:
    """Whether a guard of these settings runs in this process."""
    return pathlib.Path(settings.model).is_dir()


def _in_process(
    settings: JudgeSettings, config: Config | None, *, labels: bool
) -> tuple[JudgeSettings, ChatBackend]:
    """The settings, with a name for the model by which its replies are kept, and who answers."""
    from srpo_jax.arbiter.in_process.policy_chat import PolicyChat  # JAX is not needed by others

    if not settings.model.strip():
        raise UserError("judge.model is empty: name the HF directory of the judge")
    backend = PolicyChat(
        settings.model, config or Config(), labels=labels, batch=settings.concurrency
    )
    name = f"{pathlib.Path(settings.model).resolve().name}@{backend.digest}"
    return dataclasses.replace(settings, model=name), backend
