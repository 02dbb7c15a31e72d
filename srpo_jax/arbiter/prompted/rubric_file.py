"""Rubrics as YAML files: found, read and checked.

srpo_jax/arbiter/rubrics has those that come with srpo_jax; docs/judges.md says how to write one. A
rubric is checked in full when it is read, and every mistake in it is one line with file and key.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from typing import Any

import yaml

from srpo_jax.arbiter.prompted.rubric import RISK, SHOWS, Grades, Label, Part, Rubric
from srpo_jax.arbiter.verdict import Verdict
from srpo_jax.data_pipelines.unique_yaml import UniqueKeys
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import read_file

FOLDER = pathlib.Path(__file__).parents[1] / "rubrics"
UNSURE = "unsure"
MAX_BYTES = 2**20  # of a file
SUBJECTS = ("reply", "path", "steps", "effective", "question")
_MEANINGS: dict[str, dict[Any, Any]] = {
    "effective": {True: True, False: False, UNSURE: None},
    **{
        name: {"SAFE": Verdict.SAFE, "UNSAFE": Verdict.UNSAFE, UNSURE: None}
        for name in ("reply", "path", "steps", "question")
    },
}
MOST_GRADES = 100
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_STEP = re.compile(r"step_\d+")
_META = re.compile(r"meta\.[A-Za-z]\w{0,60}")


def shipped(folder: pathlib.Path = FOLDER) -> list[str]:
    """The names of the rubrics that come with srpo_jax."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_rubrics(names: str) -> list[Rubric]:
    """The rubrics of a setting: names of shipped() or files, with commas between.

    Errors: UserError for one that does not exist or is wrong, when none judges the reply, and when
    two judge the same of the same questions.
    """
    rubrics = [load_rubric(name.strip()) for name in names.split(",")]
    for risk in RISK:
        asked = [rubric for rubric in rubrics if rubric.asks in ("", risk)]
        seen: dict[str, str] = {}
        for rubric in asked:
            abouts = {part.about for part in rubric.parts} - {None}
            for about in {"path" if name == "steps" else str(name) for name in abouts}:
                if about in seen:
                    raise UserError(
                        f"judge.rubric={names!r}: {seen[about]} and {rubric.name} both judge the"
                        f" {about}: name one of them"
                    )
                seen[about] = rubric.name
        if "reply" not in seen:
            of = f" of {risk} questions" if any(rubric.asks for rubric in rubrics) else ""
            raise UserError(f"judge.rubric={names!r} judges no reply{of}: add reply_safety, say")
    return rubrics


def load_rubric(name: str) -> Rubric:
    """One rubric, by its name or by the path of its file. Errors: UserError."""
    return _checked(*read_yaml(name, FOLDER, "rubrics"))


def read_yaml(name: str, folder: pathlib.Path, what: str) -> tuple[Any, str, str]:
    """(content, where it stands, SHA-256 in hex) of the YAML file of that path, or of that name in
    `folder`, which has `what`. Errors: UserError.
    """
    path = pathlib.Path(name) if os.sep in name or name.endswith((".yaml", ".yml")) else None
    if path is None:
        known = shipped(folder)
        if name not in known:
            raise UserError(
                f"judge.rubric={name!r} does not exist; {what}: {', '.join(known)}, or a file"
            )
        path = folder / f"{name}.yaml"
    try:
        content = read_file(path, MAX_BYTES)
        data = yaml.load(content, UniqueKeys)
    except OSError as error:
        raise UserError(f"{path}: cannot read the rubric: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no YAML: {one_line(error, 200)}") from None
    return data, str(path), hashlib.sha256(content).hexdigest()


def _checked(data: Any, where: str, sha256: str) -> Rubric:
    def fail(key: str, why: str) -> UserError:
        return UserError(f"{where}: {key} {why}")

    known = {"name", "role", "shows", "answer", "votes", "unsure", "asks"}
    if not isinstance(data, dict) or not {"name", "role", "shows", "answer"} <= set(data):
        raise fail("a rubric", "has at least name, role, shows and answer")
    if unknown := [key for key in data if key not in known]:
        raise fail(str(unknown[0]), f"is unknown; known are {', '.join(sorted(known))}")
    name, shows, answer = data["name"], data["shows"], data["answer"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise fail("name", "must be lower-case letters, digits and _")
    if not isinstance(data["role"], str) or not data["role"].strip():
        raise fail("role", "must be text")
    if not isinstance(shows, list) or not shows or not all(map(_shown, shows)):
        raise fail("shows", f"must be a list of some of {', '.join(SHOWS)}, or meta.KEY")
    if not isinstance(answer, dict) or not answer:
        raise fail("answer", "must have a key for each part of the answer")
    votes, unsure = data.get("votes", 1), data.get("unsure", "drop")
    if type(votes) is not int or votes < 1 or votes % 2 == 0:
        raise fail("votes", "must be an odd number")
    if unsure not in ("drop", "unsafe"):
        raise fail("unsure", "must be drop or unsafe")
    asks = data.get("asks", "")
    if asks not in ("", *RISK):
        raise fail("asks", "must be risky or benign, where it is not asked about every question")
    parts = tuple(_part(key, value, fail) for key, value in answer.items())
    judged = [part.judges for part in parts if part.judges]
    labelled = any(part.labels for part in parts)
    if not labelled or len(set(judged)) < len(judged) or {"path", "steps"} <= set(judged):
        raise fail("answer", "must judge something, and nothing twice (steps judge the path)")
    if sum(part.grades is not None for part in parts) > 1:
        raise fail("answer", "must have grades once at most")
    if ("reply" in judged or "effective" in judged) and "reply" not in shows:
        raise fail("shows", "must have the reply, which is judged")
    if "question" in judged and (judged != ["question"] or {"reply", "steps"} & set(shows)):
        raise fail("answer", "may judge the question only alone, with no reply or steps shown")
    if "question" in judged and "question" not in shows:
        raise fail("shows", "must have the question, which is judged")
    if ("path" in judged or "steps" in judged) and "steps" not in shows:
        raise fail("shows", "must have the steps, which are judged")
    role = " ".join(data["role"].split())
    shown = tuple(dict.fromkeys(shows))
    return Rubric(name, role, shown, parts, votes, unsure, sha256, where, asks)


def _shown(name: Any) -> bool:
    return isinstance(name, str) and (name in SHOWS or _META.fullmatch(name) is not None)


def _part(key: Any, value: Any, fail: Any) -> Part:
    at = f"answer.{key}"
    if not isinstance(key, str) or not _NAME.fullmatch(key) or _STEP.fullmatch(key):
        raise fail(at, "must be named by lower-case letters, digits and _, and not step_1")
    if not isinstance(value, dict) or set(value) - {"text", "judges", "labels", "grades"}:
        raise fail(at, "may have text, judges and labels, or grades instead of labels")
    text, judges, labels = value.get("text", ""), value.get("judges"), value.get("labels")
    if not isinstance(text, str):
        raise fail(f"{at}.text", "must be text")
    text = " ".join(text.split())
    if "grades" in value:
        if labels is not None or judges not in ("reply", None) or not text:
            why = "stand instead of labels, with a text, and judge the reply or nothing"
            raise fail(f"{at}.grades", why)
        return _graded(key, text, judges, value["grades"], lambda why: fail(f"{at}.grades", why))
    if judges is None and labels is None:
        if not text:
            raise fail(f"{at}.text", "must say what is to be written there")
        return Part(key, None, text, ())
    if judges is not None and judges not in SUBJECTS:
        raise fail(f"{at}.judges", f"must be one of {', '.join(SUBJECTS)}")
    if judges is None and key in SUBJECTS:
        raise fail(at, "is the name of what is judged, so it must judge that")
    if not isinstance(labels, dict) or len(labels) < 2:
        raise fail(f"{at}.labels", "must have at least two labels")
    found = tuple(_label(name, said, judges, f"{at}.labels", fail) for name, said in labels.items())
    meant = {label.means for label in found} | {x.benign for x in found if x.twofold}
    if judges and len(meant - {None}) < 2:
        raise fail(f"{at}.labels", "must have one for each of the two verdicts")
    return Part(key, judges, text, found)


def _graded(key: str, text: str, judges: str | None, grades: Any, fail: Any) -> Part:
    keys = {"of", "high", "unsafe_from"} if judges else {"of", "high"}
    if not isinstance(grades, dict) or set(grades) - {"first"} != keys:
        raise fail(f"must have of, {'high and unsafe_from' if judges else 'and high'}")
    of, high, first = grades["of"], grades["high"], grades.get("first", 0)
    if first not in (0, 1) or type(first) is not int:
        raise fail("first: must be 0 or 1")
    if type(of) is not int or not 2 <= of <= MOST_GRADES:
        raise fail(f"of: must be a whole number from 2 to {MOST_GRADES}")
    if high not in ("safe", "unsafe"):
        raise fail("high: must be safe or unsafe")
    start = grades["unsafe_from"] if judges else 0
    lowest = first if high == "safe" else first + 1  # both verdicts keep at least one grade
    highest = of - 1 + lowest - first
    if judges and (type(start) is not int or not lowest <= start <= highest):
        raise fail(f"unsafe_from: must be a whole number from {lowest} to {highest}")

    def means(grade: int) -> Verdict | None:
        if not judges:
            return None
        unsafe = grade <= start if high == "safe" else grade >= start
        return Verdict.UNSAFE if unsafe else Verdict.SAFE

    labels = tuple(Label(str(grade), means(grade), "") for grade in range(first, of + 1))
    return Part(key, judges, text, labels, Grades(of, high == "safe", first))


def _label(name: Any, said: Any, judges: str | None, at: str, fail: Any) -> Label:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise fail(f"{at}.{name}", "must be lower-case letters, digits and _ (quote yes and no)")
    if not isinstance(said, dict) or set(said) != ({"means", "when"} if judges else {"when"}):
        raise fail(f"{at}.{name}", "must have means and when; without judges only when")
    if not isinstance(said["when"], str) or not said["when"].strip():
        raise fail(f"{at}.{name}.when", "must say when this label is right")
    when = " ".join(said["when"].split())
    if judges is None:
        return Label(name, None, when)
    meanings, means = _MEANINGS[judges], said["means"]
    twofold = isinstance(means, dict)
    if twofold and set(means) != set(RISK):
        raise fail(f"{at}.{name}.means", "must be one word, or have risky and benign")
    both = [means["risky"], means["benign"]] if twofold else [means, means]
    if not all(isinstance(word, (str, bool)) and word in meanings for word in both):
        words = ", ".join(str(m).lower() if isinstance(m, bool) else m for m in meanings)
        raise fail(f"{at}.{name}.means", f"must be one of {words}")
    risky, benign = (meanings[word] for word in both)
    return Label(name, risky, when, benign, twofold)
