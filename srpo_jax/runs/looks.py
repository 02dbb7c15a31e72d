"""How often the test questions were looked at: WORKDIR/test_looks.json, one entry a policy."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from srpo_jax.console import say
from srpo_jax.files import read_json, write_json

FILE = "test_looks.json"
# What makes a look another one.
KEYS = ("policy_digest", "prompt_digest", "records", "decoding")


def count_look(workdir: str | os.PathLike, name: str, about: Mapping[str, Any]) -> int:
    """Which look this is, from 1: that of before if the same was looked at already.

    name: of the evaluation. about: what its answers.json says.
    """
    path = pathlib.Path(workdir) / FILE
    looks = read_json(path)["looks"] if path.is_file() else []
    what = {key: about.get(key) for key in KEYS}
    known = [{key: look.get(key) for key in KEYS} for look in looks]
    if what not in known:
        write_json(path, {"looks": [*looks, {"evaluation": name, **what}]})
        return len(looks) + 1
    return known.index(what) + 1


def tell_look(workdir: str | os.PathLike, name: str, about: Mapping[str, Any]) -> None:
    """Counts it and says which one it is, if it is one at test questions, which all of a benchmark
    are. Of several processes the first one does. Arguments: as of count_look.
    """
    if not about.get("benchmark") and about["decoding"].get("split") != "test":
        return
    look = count_look(workdir, name, about)
    say(f"{name}: test questions, look {look} of this workdir ({FILE} has all)")
