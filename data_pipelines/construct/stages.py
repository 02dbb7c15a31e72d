"""A list of stages as a file: what is asked, of whom, how it is answered, and what is kept.

stage_lists/ has those that come with srpo_jax; docs/construct.md says how to write one. A list is
checked in full when it is read, and every mistake in it is one line with file and key.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from srpo_jax.data_pipelines.construct.answers import Part
from srpo_jax.data_pipelines.path_formats.headings import SSUI
from srpo_jax.data_pipelines.records import CATEGORIES
from srpo_jax.data_pipelines.unique_yaml import UniqueKeys
from srpo_jax.errors import UserError, one_line
from srpo_jax.files import read_file

FOLDER = pathlib.Path(__file__).with_name("stage_lists")
ROLES = ("writer", "answerer", "arbiter")
STARTS = ("pictures", "questions")
OF_ROW = ("images", "question", "kind", "kinds")  # what is shown besides answers of earlier stages
HEADINGS = {"ssui": SSUI, "none": ()}
MAX_BYTES = 2**20  # of a file
_STAGE = {"name", "role", "shows", "prompt", "answer"}
_RECORD = {"question", "steps", "reply"}
_RECORD_ALSO = {"unsafe_reply", "headings", "risky", "meta", "verdicts", "twin"}

Fail = Callable[[str, str], UserError]


@dataclass(frozen=True)
class Keep:
    """A row goes on when its answer's `field` is one of `words`, or at least `at_least`, or not
    empty (filled). of: only of rows of this category. why: else it is rejected for this.
    """

    field: str
    why: str
    words: tuple[str, ...] = ()
    at_least: int | None = None
    filled: bool = False
    of: str = ""

    def holds(self, answer: Mapping[str, Any]) -> bool:
        """Whether the row goes on."""
        value = answer[self.field]
        if self.words:
            return value in self.words
        return value >= self.at_least if self.at_least is not None else bool(value)


@dataclass(frozen=True)
class Stage:
    """One question to a model about every row. role: which model. shows: what of the row."""

    name: str
    role: str
    shows: tuple[str, ...]
    prompt: str
    answer: tuple[Part, ...]
    keep: tuple[Keep, ...] = ()


@dataclass(frozen=True)
class StageList:
    """A whole list. kinds: {name: what is shown of it}; of "category" the record's is taken.
    record: from which answers a record is made, as its file says. digest: 16 hex digits over the
    contents.
    """

    name: str
    starts_from: str
    kinds: Mapping[str, Mapping[str, Any]]
    stages: tuple[Stage, ...]
    record: Mapping[str, Any]
    digest: str
    headings: tuple[str, ...] = field(default=())

    def category(self, kind: str | None) -> str | None:
        """Of the records whose rows are of this kind."""
        return self.kinds[kind].get("category") if kind else None

    def roles(self) -> list[str]:
        """Whom it asks, in order."""
        return list(dict.fromkeys(stage.role for stage in self.stages))


def shipped() -> list[str]:
    """The names of the lists that come with srpo_jax."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml") if "stages:" in p.read_text())


def load_stages(name: str) -> StageList:
    """The list of this name, or of this file. Errors: UserError that names file and key."""
    path = pathlib.Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{name}.yaml"
        if name not in shipped():
            there = ", ".join(shipped())
            raise UserError(f"--stages={name!r} does not exist; there is {there}, or a YAML file")
    data = _read(path)

    def fail(key: str, why: str) -> UserError:
        return UserError(f"{path}: {key} {why}")

    known = {"name", "starts_from", "kinds", "stages", "record"}
    if not isinstance(data, dict) or set(data) != known:
        raise fail("a list of stages", f"has exactly {', '.join(sorted(known))}")
    if data["starts_from"] not in STARTS:
        raise fail("starts_from", f"must be one of {', '.join(STARTS)}")
    if not isinstance(data["kinds"], str) or pathlib.PurePath(data["kinds"]).name != data["kinds"]:
        raise fail("kinds", "must be the name of a YAML file beside this one")
    kinds = _kinds(path.with_name(data["kinds"]))
    if not isinstance(data["stages"], list) or not data["stages"]:
        raise fail("stages", "must be a list")
    known_answers: dict[str, Part | None] = {name: None for name in OF_ROW}
    if data["starts_from"] == "pictures":
        del known_answers["question"]
    stages: list[Stage] = []
    for i, each in enumerate(data["stages"]):
        stage = _stage(each, f"stages[{i}]", kinds, known_answers, fail)
        stages.append(stage)
        known_answers |= {f"{stage.name}.{part.key}": part for part in stage.answer}
    _check_record(data["record"], known_answers, fail)
    content = json.dumps([data, kinds], sort_keys=True)
    return StageList(
        name=one_line(data["name"], 40),
        starts_from=data["starts_from"],
        kinds=kinds,
        stages=tuple(stages),
        record=data["record"],
        digest=hashlib.sha256(content.encode()).hexdigest()[:16],
        headings=HEADINGS[data["record"].get("headings", "none")],
    )


def _read(path: pathlib.Path) -> Any:
    try:
        return yaml.load(read_file(path, MAX_BYTES), UniqueKeys)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no YAML: {one_line(error, 200)}") from None


def _kinds(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    data = _read(path)
    if not isinstance(data, dict) or not data:
        raise UserError(f"{path}: must have a name for each kind, with what is said of it")
    for name, about in data.items():
        if not isinstance(name, str) or not isinstance(about, dict):
            raise UserError(f"{path}: {name} must be a name, with keys behind it")
        if about.get("category") not in (None, *CATEGORIES):
            raise UserError(f"{path}: {name}.category is none of {', '.join(CATEGORIES)}")
    return data


def _stage(
    data: Any, at: str, kinds: Mapping[str, Any], known: Mapping[str, Any], fail: Fail
) -> Stage:
    if not isinstance(data, dict) or not _STAGE <= set(data) <= {*_STAGE, "keep"}:
        raise fail(at, f"has {', '.join(sorted(_STAGE))} and may have keep")
    name, prompt, shows = data["name"], data["prompt"], data["shows"]
    if not isinstance(name, str) or not name.isidentifier() or f"{name}." in "".join(known):
        raise fail(f"{at}.name", "must be one word that no other stage has")
    if data["role"] not in ROLES:
        raise fail(f"{at}.role", f"must be one of {', '.join(ROLES)}")
    if not isinstance(prompt, str) or not prompt.strip():
        raise fail(f"{at}.prompt", "must be text")
    unknown = [n for n in shows if n not in known] if isinstance(shows, list) else [shows]
    if unknown or not shows:
        raise fail(f"{at}.shows", f"has {unknown}, which is not there yet")
    if len({shown_name(n) for n in shows}) < len(shows):
        raise fail(f"{at}.shows", "has two of one name")
    answer = data["answer"]
    if not isinstance(answer, dict) or not answer:
        raise fail(f"{at}.answer", "must have a key for each part of the answer")
    parts = tuple(
        _part(key, said, f"{at}.answer.{key}", kinds, fail) for key, said in answer.items()
    )
    keep = data.get("keep", [])
    if not isinstance(keep, list):
        raise fail(f"{at}.keep", "must be a list")
    rules = tuple(_keep(rule, f"{at}.keep[{i}]", parts, fail) for i, rule in enumerate(keep))
    words = " ".join(prompt.split())
    return Stage(name, data["role"], tuple(shows), words, parts, rules)


# What a part of an answer may have besides its kind, which is the first word of it.
_PARTS = {
    "text": {"words", "may_be_empty"},
    "list": {"words", "count", "least", "most"},
    "grade": {"of"},
    "labels": set(),
    "labels_of_kinds": set(),
}


def _part(key: Any, data: Any, at: str, kinds: Mapping[str, Any], fail: Fail) -> Part:
    if not isinstance(key, str) or not key.isidentifier() or not isinstance(data, dict):
        raise fail(at, "must be a word with a part of the answer behind it")
    kind = next((name for name in _PARTS if name in data), "")
    if not kind or set(data) - {kind} - _PARTS[kind]:
        raise fail(at, "must be a text or list with words, a grade with of, or labels")
    numbers = {n: v for n, v in data.items() if n in ("words", "count", "least", "most", "of")}
    if any(type(n) is not int or not 0 <= n <= 1000 for n in numbers.values()):
        raise fail(at, "must have whole numbers, 0 to 1000")
    said, words = data[kind], numbers.get("words", 0)
    if kind == "labels":
        texts = isinstance(said, dict) and all(isinstance(x, str) for x in [*said, *said.values()])
        if not texts or len(said) < 2:
            raise fail(f"{at}.labels", "must be at least two words, each with when it is right")
        return Part(key, "labels", labels=said)
    if not isinstance(said, str) or (kind in ("text", "list") and not words):
        raise fail(at, "must say what is to be written there, and of a text in how many words")
    if kind == "labels_of_kinds":
        return Part(key, "labels", said, labels={name: "see the material" for name in kinds})
    if kind == "grade":
        return Part(key, "grade", said, most=numbers.get("of", 10))
    if kind == "text":
        return Part(key, "text", said, words, may_be_empty=bool(data.get("may_be_empty")))
    most = numbers.get("count", numbers.get("most", 0))
    least = numbers.get("count", numbers.get("least", 0))
    if not 0 < most >= least:
        raise fail(at, "must have a count, or the most of a list")
    return Part(key, "list", said, words, least, most)


def _keep(data: Any, at: str, parts: Sequence[Part], fail: Fail) -> Keep:
    tests = {"is", "at_least", "filled"}
    if not isinstance(data, dict) or not {"field", "why"} <= set(data) <= {
        "field",
        "why",
        "of",
        *tests,
    }:
        raise fail(at, "has field, why, one of is, at_least and filled, and may have of")
    part = next((part for part in parts if part.key == data["field"]), None)
    if part is None or len(tests & set(data)) != 1:
        raise fail(at, "must name a key of this answer, and test it once")
    if data.get("of", CATEGORIES[0]) not in CATEGORIES:
        raise fail(f"{at}.of", f"is none of {', '.join(CATEGORIES)}")
    words = data.get("is", [])
    if not isinstance(words, list) or ("is" in data and not set(words) <= set(part.labels or ())):
        raise fail(f"{at}.is", "must be labels of that key")
    if "at_least" in data and (part.kind != "grade" or type(data["at_least"]) is not int):
        raise fail(f"{at}.at_least", "must be a number, of a grade")
    return Keep(
        field=data["field"],
        why=str(data["why"]),
        words=tuple(words),
        at_least=data.get("at_least"),
        filled=bool(data.get("filled")),
        of=data.get("of", ""),
    )


def _check_record(data: Any, known: Mapping[str, Part | None], fail: Fail) -> None:
    if not isinstance(data, dict) or not _RECORD <= set(data) <= _RECORD | _RECORD_ALSO:
        raise fail("record", f"has {', '.join(sorted(_RECORD))}, and may have {_RECORD_ALSO}")
    paths = {
        name: data[name] for name in ("question", "steps", "reply", "unsafe_reply") if name in data
    }
    paths |= {f"meta[{i}]": name for i, name in enumerate(data.get("meta", []))}
    paths |= {f"verdicts.{n}": name for n, name in data.get("verdicts", {}).items()}
    twin = data.get("twin", {})
    if twin and set(twin) != _RECORD:
        raise fail("record.twin", f"must have {', '.join(sorted(_RECORD))}")
    paths |= {f"twin.{n}": name for n, name in twin.items()}
    for key, name in paths.items():
        if name not in known:
            raise fail(f"record.{key}", f"is {name!r}, which no stage answers")
        lists = known[name] is not None and known[name].kind == "list"  # pyright: ignore
        if key.rpartition(".")[2] == "steps" and not lists:
            raise fail(f"record.{key}", "must be a list")
    if data.get("headings", "none") not in HEADINGS:
        raise fail("record.headings", f"must be one of {', '.join(HEADINGS)}")
    if not isinstance(data.get("risky"), bool | None):
        raise fail("record.risky", "must be true or false, or not be there")


def shown_name(path: str) -> str:
    """What something shown is called: `steps` of `check.steps`."""
    return path.rpartition(".")[2]
