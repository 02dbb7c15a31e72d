"""Who judged, in words: for the report, the model card and the first lines of a run.

A judge is what judge.json says of it, or the copy of that in config.json and scores.json:
{"arbiter", "digest", "spec"}, and "set" for the name of its verdicts. `spec` holds whatever its
arbiter counts as deciding; what `prompted` writes there is told in words, the rest as it is.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from srpo_jax.errors import one_line

LONGEST = 300  # characters of what is told as it is
HEX = 12  # digits that are shown of a SHA-256
_SAMPLING = (
    "temperature",
    "max_tokens",
    "structured",
    "logprobs",
    "image_max_side",
)
_VERSIONS = ("prompt", "parser")
_ADDRESS = re.compile(r"\w://")
_ABSOLUTE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]")


def judge_facts(judge: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of all that is known of a judge, without
    folders and addresses."""
    spec = dict(without_folders(judge.get("spec") or {}))
    told = [("judge", str(judge.get("arbiter", "unknown")))]
    if judge.get("set"):
        told.append(("verdict set", str(judge["set"])))
    told.append(("digest", str(judge.get("digest", "unknown"))))
    if spec.get("arbiter") == judge.get("arbiter"):
        spec.pop("arbiter", None)
    if "model" in spec:
        told.append(("model", str(spec.pop("model"))))
    if rubrics := _rubrics(spec.get("rubrics")):
        told.append(("rubrics", rubrics))
        del spec["rubrics"]
    for title, names in (("sampling", _SAMPLING), ("versions", _VERSIONS)):
        found = {name: spec.pop(name) for name in names if name in spec}
        if found:
            told.append((title, ", ".join(f"{name} {_plain(v)}" for name, v in found.items())))
    told += [(name, _plain(value)) for name, value in sorted(spec.items())]
    return [(one_line(name, LONGEST), one_line(value, LONGEST)) for name, value in told]


def judge_line(judge: Mapping[str, Any]) -> str:
    """The same in one line."""
    (_, name), *rest = judge_facts(judge)
    return ", ".join([name, *(f"{what} {value}" for what, value in rest)])


def same_judge(*judges: Mapping[str, Any] | None) -> bool:
    """Whether all of them are known to be the same. One that was not recorded is like no other."""
    digests = {(judge or {}).get("digest") for judge in judges}
    return len(digests) < 2 and (len(judges) < 2 or None not in digests)


def without_folders(value: Any) -> Any:
    """JSON values in which a path from the root (or home) of a machine is only its last name, and
    an address is left out.
    """
    if isinstance(value, Mapping):
        return {str(name): without_folders(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(inner) for inner in value]
    if isinstance(value, str) and _ADDRESS.search(value):
        return "(an address)"
    if isinstance(value, str) and _ABSOLUTE.match(value):
        return pathlib.PureWindowsPath(value).name  # knows both kinds of slashes
    return value


def _rubrics(found: Any) -> str:
    """Of an arbiter that asks by rubrics; "" for anything else."""
    if not isinstance(found, list) or not all(isinstance(r, dict) and "name" in r for r in found):
        return ""
    told = []
    for rubric in found:
        more = {name: value for name, value in rubric.items() if name != "name"}
        if "sha256" in more:
            more["sha256"] = str(more["sha256"])[:HEX]
        listed = ", ".join(f"{name} {_plain(value)}" for name, value in more.items())
        told.append(f"{rubric['name']} ({listed})" if listed else str(rubric["name"]))
    return "; ".join(told)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
