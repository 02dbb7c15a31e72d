"""Rubrics: what a judge is told and how its answer is laid out; rubric_file.py reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from srpo_jax.arbiter.verdict import Verdict

# What a rubric may show, and the field of the record that is read for it beyond the usual ones.
SHOWS = {
    "images": None,
    "question": None,
    "steps": None,
    "reply": None,
    "category": "category",
    "risky": "risky",
    "reference_steps": "steps",
    "reference_reply": "reply",
    "unsafe_reply": "unsafe_reply",
}
OF_META = "meta."  # in front of what is shown of the record's meta, a text
RISK = {"risky": True, "benign": False}


@dataclass(frozen=True)
class Label:
    """A word that the judge may answer. means: a Verdict, or True or False (effective), or None:
    unsure, or nothing in a part that judges nothing. benign: what it means on a harmless question,
    where that is something else.
    """

    name: str
    means: Verdict | bool | None
    when: str
    benign: Verdict | bool | None = None
    twofold: bool = False


@dataclass(frozen=True)
class Grades:
    """Labels that are the numbers from `first` to `of`. high_is_safe: else the highest is the
    worst.
    """

    of: int
    high_is_safe: bool
    first: int = 0

    def score(self, label: str) -> float:
        """How unsafe, 0 to 1."""
        share = (int(label) - self.first) / (self.of - self.first)
        return 1 - share if self.high_is_safe else share


@dataclass(frozen=True)
class Part:
    """A key of the answer: one of the labels, or free text where there are none. Labels of a part
    that judges nothing are kept in the verdict, and mean nothing by themselves. `text` says what
    is to be written; of steps: what before the label of each step, "" for nothing. grades: what
    the labels are when they are numbers; then `text` says what they stand for.
    """

    key: str
    judges: str | None
    text: str
    labels: tuple[Label, ...]
    grades: Grades | None = None

    def means(self, label: str) -> Verdict | bool | None:
        """What a label of this part stands for."""
        return next(found.means for found in self.labels if found.name == label)

    @property
    def about(self) -> str | None:
        """What its label is kept as: what it judges, else its key; None of free text."""
        return self.judges or (self.key if self.labels else None)


@dataclass(frozen=True)
class Rubric:
    """A rubric as read; sha256: of its file. asks: about which questions, "risky" or "benign"
    ones, "" for all.
    """

    name: str
    role: str
    shows: tuple[str, ...]
    parts: tuple[Part, ...]
    votes: int
    unsure: str  # drop: ERROR; unsafe: as if it were UNSAFE
    sha256: str
    where: str
    asks: str = ""

    def for_question(self, risky: bool | None) -> Rubric | None:
        """The rubric as it is asked about a question that is risky or not, None where it is not
        asked. Errors: ValueError where that matters and is not known.
        """
        twofold = any(label.twofold for part in self.parts for label in part.labels)
        if not self.asks and not twofold:
            return self
        if risky is None:
            raise ValueError(f"{self.name} must know whether the question is risky")
        if self.asks and RISK[self.asks] != risky:
            return None
        if risky or not twofold:
            return self
        parts = (
            replace(
                part,
                labels=tuple(
                    replace(x, means=x.benign, twofold=False) if x.twofold else x
                    for x in part.labels
                ),
            )
            for part in self.parts
        )
        return replace(self, parts=tuple(parts))

    def labels_only(self) -> Rubric:
        """The same without free text: of the answer only the labels are left."""
        judging = [part for part in self.parts if part.labels]
        # Before the labels of steps stands a text, too; that of other parts only explains them.
        parts = [replace(p, text="") if p.judges == "steps" else p for p in judging]
        return replace(self, parts=tuple(parts))

    @property
    def judges(self) -> dict[str, Part]:
        """The parts that judge something, by what they judge."""
        return {part.judges: part for part in self.parts if part.judges}

    @property
    def main(self) -> str:
        """What Judgement.reply says something of: the reply, or the question alone (questions.py
        in srpo_jax/judge).
        """
        return "question" if "question" in self.judges else "reply"

    @property
    def graded(self) -> Part | None:
        """The part whose grades are the score, if there is one."""
        return next((part for part in self.parts if part.grades), None)

    @property
    def reads(self) -> tuple[str, ...]:
        """Fields of the record that it needs, for Arbiter.reads."""
        shown = ("meta" if s.startswith(OF_META) else SHOWS[s] for s in self.shows)
        twofold = any(label.twofold for part in self.parts for label in part.labels)
        by_risk = ["risky"] if self.asks or twofold else []
        return tuple(dict.fromkeys([*filter(None, shown), *by_risk]))

    def schema(self, steps: int) -> dict[str, Any]:
        """JSON schema of the answer about a path of so many steps, in OpenAI's strict subset."""
        properties: dict[str, Any] = {}
        for part in self.parts:
            if part.judges != "steps":
                properties[part.key] = _word(part) if part.labels else {"type": "string"}
                continue
            inner = {"evidence": {"type": "string"}} if part.text else {}
            inner["verdict"] = _word(part)
            properties |= {key: _object(inner) for key in step_keys(steps)}
        return _object(properties)

    def layout(self) -> str:
        """What the answer must look like, in words."""
        lines = ["Answer with one JSON object and nothing else. Its keys, in this order:"]
        for part in self.parts:
            if not part.labels:
                lines.append(f'"{part.key}": a string. {part.text}')
            elif part.judges == "steps":
                inner = f'"evidence", a string ({part.text}), and then ' if part.text else ""
                lines.append(
                    f'"step_1", "step_2" and so on, one for each step: an object with {inner}'
                    f'"verdict", one of these strings:'
                )
            else:
                lines.append(f'"{part.key}": one of these strings. {part.text}'.rstrip())
            if part.grades:
                lines.append("  " + ", ".join(f'"{label.name}"' for label in part.labels))
            else:
                lines += [f'  "{label.name}": {label.when}' for label in part.labels]
        return "\n".join(lines)


def step_keys(steps: int) -> list[str]:
    """step_1, step_2, ...: the keys of an answer about so many steps."""
    return [f"step_{i + 1}" for i in range(steps)]


def _word(part: Part) -> dict[str, Any]:
    return {"type": "string", "enum": [label.name for label in part.labels]}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
