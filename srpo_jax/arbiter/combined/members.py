"""The members of a combined arbiter: made from config files, asked soundly, told as one."""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from srpo_jax.arbiter.chat.cost import Preview, Usage, total_preview, total_usage
from srpo_jax.arbiter.contract import BATCH, check_count, listed, reduced, sound
from srpo_jax.arbiter.verdict import Arbiter, Case, Judgement, Verdict
from srpo_jax.config.fields import FIELDS, Config
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.config.load import find_config_file, load_config
from srpo_jax.errors import RunFailure, UserError, one_line

ERROR = Verdict.ERROR
# A member's config says arbiter.kind, `judge` and, for one that runs here, `model` and `mesh`.
_UNUSED = {field.name for field in FIELDS.values() if field.rule.required} - {"arbiter.kind"}

MakeMember = Callable[[str], Arbiter]  # of a config file, or file:variant


class Make(Protocol):
    """What makes an arbiter of what its config says. within: the configs that led to it."""

    def __call__(
        self, kind: str, settings: JudgeSettings, *, config: Config, within: tuple[str, ...]
    ) -> Arbiter: ...


def make_member(spec: str, make: Make, within: tuple[str, ...]) -> Arbiter:
    """The arbiter of a config file. Errors: UserError that names the file, also for one that is a
    member of itself.
    """
    path, _, variant = spec.partition(":")
    file = find_config_file(path)
    key = f"{file.resolve() if file else path}:{variant}"
    if key in within:
        raise UserError(f"judge.members: {spec} names itself as a member")
    try:
        config = load_config(spec, unused=_UNUSED)
        return make(config.arbiter.kind, config.judge, config=config, within=(*within, key))
    except UserError as error:
        raise UserError(f"member {spec}: {error}") from None


def make_members(names: str, make: MakeMember) -> list[Arbiter]:
    """The arbiters that judge.members names. Errors: UserError, as make_member."""
    if not names.strip():
        raise UserError(
            "judge.members is empty: name the config files of the judges, with commas between"
        )
    return [make(name.strip()) for name in names.split(",")]


class Combined(abc.ABC):
    """What every combined arbiter has: the attributes of Arbiter, from its members and `also`,
    another one that is asked in another role. rules: what decides besides, for the spec.

    Errors: UserError for two members that are the same judge.
    """

    def __init__(self, kind: str, members: Sequence[Arbiter], *also: Arbiter, **rules: Any):
        self.members, self._asked = list(members), [*members, *also]
        self.name = f"{kind}({', '.join(member.name for member in self._asked)})"
        reads = (name for member in self._asked for name in getattr(member, "reads", ()))
        self.reads = tuple(dict.fromkeys(reads))
        self.batch = max(getattr(member, "batch", BATCH) for member in self._asked)
        judging = [getattr(member, "judges_paths", True) for member in self.members]
        self.judges_paths = 2 * sum(judging) > len(judging)
        self._rules = {"arbiter": kind, **rules}
        self._refuse_equals()
        usages = [getattr(member, "usage", None) for member in self._asked]
        self._counted = [usage for usage in usages if isinstance(usage, Usage)]
        if self._counted:
            self.usage = total_usage(self._counted)

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """See Arbiter.judge; afterwards `usage` is what all members have used."""
        try:
            return self.decide(cases)
        finally:
            if self._counted:  # in place: others hold on to it
                vars(self.usage).update(vars(total_usage(self._counted)))

    @abc.abstractmethod
    def decide(self, cases: Sequence[Case]) -> list[Judgement]:
        """What the members say together, for each case."""

    @property
    def spec(self) -> dict[str, Any]:
        """All that decides the verdicts."""
        return {**self._rules, "members": [about(member) for member in self.members]}

    @property
    def preview(self) -> Callable[[Sequence[Case]], Preview]:
        """See Arbiter.preview, of those that are asked and have one; AttributeError without any."""
        first, note = self.asked_first()
        found = [(member, getattr(member, "preview", None)) for member in first]
        previews = [(member, preview) for member, preview in found if preview is not None]
        if not previews:
            raise AttributeError("nobody of them asks a chat model")
        others = ", ".join(member.name for member, preview in found if preview is None)
        note = "; ".join(filter(None, (note, f"{others} besides, not counted" if others else "")))
        return lambda cases: total_preview(
            (preview(shown_to(member, cases)) for member, preview in previews), note
        )

    def asked_first(self) -> tuple[Sequence[Arbiter], str]:
        """Those that are asked about every case, and what is to be said of the others."""
        return self.members, ""

    def check(self, pictures: int) -> None:
        """See Arbiter.check."""
        for member in self._asked:
            getattr(member, "check", lambda _: None)(pictures)

    def flush(self) -> None:
        """See Arbiter.flush."""
        for member in self._asked:
            getattr(member, "flush", lambda: None)()

    def ask_all(self, cases: Sequence[Case]) -> list[tuple[Judgement, ...]]:
        """For each case what the members say."""
        return list(zip(*(ask_member(member, cases) for member in self.members), strict=True))

    def _refuse_equals(self) -> None:
        seen: dict[str, int] = {}
        for number, member in enumerate(self.members, 1):
            same = seen.setdefault(json.dumps(about(member), sort_keys=True), number)
            if same != number:
                raise UserError(
                    f"judge.members: numbers {same} and {number} are the same judge, "
                    f"{member.name}: one voice counts once (its own judge.votes asks it again)"
                )


def about(member: Arbiter) -> dict[str, Any]:
    """What the spec of a combined arbiter says of a member."""
    return {"name": member.name, "spec": getattr(member, "spec", {})}


def shown_to(member: Arbiter, cases: Sequence[Case]) -> list[Case]:
    """The cases with what this member reads of a record, as if it were asked alone."""
    reads = tuple(getattr(member, "reads", ()))
    return [dataclasses.replace(case, record=reduced(case.record, reads)) for case in cases]


def ask_member(member: Arbiter, cases: Sequence[Case]) -> list[Judgement]:
    """What a member says of the cases, in order, in batches of its size. One that raises is asked
    again in halves, and what is no judgement on its case is ERROR and failed, so that a broken
    member costs its own vote and no other. Its UserError or RunFailure passes.
    """
    shown, batch = shown_to(member, cases), getattr(member, "batch", BATCH)
    found: list[Judgement] = []
    for start in range(0, len(shown), batch):
        found += _ask(member, shown[start : start + batch])
    return found


def _ask(member: Arbiter, cases: list[Case]) -> list[Judgement]:
    try:
        answers = listed(member.judge(list(cases)))
        check_count(answers, cases)
    except (UserError, RunFailure):
        raise
    except Exception as error:  # whatever a member raises, it is the member's
        if len(cases) > 1:
            half = len(cases) // 2
            return _ask(member, cases[:half]) + _ask(member, cases[half:])
        return [failure(f"{type(error).__name__}: {one_line(error, 200)}")]
    return [_sound(answer, case) for answer, case in zip(answers, cases, strict=True)]


def _sound(answer: Any, case: Case) -> Judgement:
    try:
        return sound(answer, case)
    except Exception as error:  # whatever its fields do when they are looked at
        return failure(one_line(error, 200))


def failure(why: str, votes: Sequence[Verdict] = ()) -> Judgement:
    """ERROR that is asked again at the next start."""
    return Judgement(ERROR, ERROR, (), None, why, votes=tuple(votes), failed=True)
