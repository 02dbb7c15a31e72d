"""What is said of files is true: links in pages, and paths in pages, sources and scripts, exist."""

from __future__ import annotations

import pathlib
import re
import subprocess

import pytest

from tests.support import ROOT

LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)[^)]*\)")
# A path that is written out, from a folder of the top level to a file or folder.
TOP = "configs|data_pipelines|docs|launch|srpo_jax|studies|tests"
PATH = re.compile(rf"(?<![\w./<~-])((?:{TOP})/[\w./-]*[\w/])(?![\w*<{{-])")
# A module that is named without its folder.
MODULE = re.compile(r"(?<![\w/.{}*-])\w+\.py\b")
ELSEWHERE = {"mine.py", "system_characteristics.py", "my_losses.py", "my_family.py"}
# The changelog tells of files that moved; tests write modules of their own; names as in EXAMPLE
# stand for others.
SKIPPED_FILES = ("CHANGELOG.md", "tests/test_pages.py")
# The last is the name of a task for Inspect.
EXAMPLE = re.compile(r"(?i).*/(x|name|pdo)(\.\w+)?|srpo_jax/rsbench")


def missing(text: str, page: pathlib.Path | None, modules: set[str]) -> list[str]:
    """What `text` names and is not there: targets of its links, seen from the page (None: it has
    none), paths, seen from the page's folder or the top level, with or without suffix, and modules
    without their folder that are none of `modules`.
    """
    found = []
    if page:
        found = [name for name in LINK.findall(text) if not (page.parent / name).exists()]
        text = LINK.sub("", text)
    folders = [ROOT, page.parent] if page else [ROOT]
    for name in PATH.findall(text):
        places = [folder / f"{name}{end}" for folder in folders for end in ("", ".md", ".py")]
        if not EXAMPLE.fullmatch(name) and not any(place.exists() for place in places):
            found.append(name)
    return found + [name for name in MODULE.findall(text) if name not in modules | ELSEWHERE]


def test_every_link_and_path_leads_somewhere():
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
    kinds = ["*.md", "*.py", "Makefile", ".ci/run", ".importlinter", "ruff.toml", "Dockerfile"]
    listed = subprocess.run([*git, *kinds], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout")
    names = listed.stdout.split("\0")
    modules = {pathlib.Path(name).name for name in names if (ROOT / name).is_file()}
    dead = {}
    for name in names:
        path = ROOT / name
        if path.is_file() and name not in SKIPPED_FILES:
            text = path.read_text()
            known = modules | set(MODULE.findall(text)) if name.startswith("tests/") else modules
            dead[name] = missing(text, path if name.endswith(".md") else None, known)
    assert len(dead) > 100
    assert {name: found for name, found in dead.items() if found} == {}


def test_a_dead_link_and_a_path_that_moved_are_found():
    text = "[a](README.md) [b](docs/no.md#x) `tests/support/` srpo_jax/no/such.py:12, a.py, b.py"
    found = missing(text, ROOT / "README.md", {"b.py"})
    assert found == ["docs/no.md", "srpo_jax/no/such.py", "a.py"]
