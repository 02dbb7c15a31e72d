"""Makes docs/configuration.md: `python -m srpo_jax.config.docs > docs/configuration.md`.

Names, defaults and descriptions are read from the lines of configs/common.py, allowed values from
config_check.RULES, so the page cannot say anything else than the code (a test compares them).
"""

from __future__ import annotations

import re

from srpo_jax.config.check import RULES, SECTIONS
from srpo_jax.config.load import REPOSITORY

LINE = re.compile(r"    config\.([\w.]+) = (.+?)  # (.+)")

HEAD = """# Configuration

An experiment is one Python file with `get_config()` in `configs/`; it starts from
`configs/common.py` and changes a few fields. A config file is a program: loading one runs it.

    srpo train --config=configs/ssui_mini.py:dpo --config.train.steps=50 --workdir=runs/dpo

* `--config=FILE` or `--config=FILE:VARIANT`: which file, and which variant of it.
* `--config.section.field=value`: one field. Text needs no quotes; a tuple is written
  `--config.train.freeze="('vision/.*',)"`.
* A misspelt field, a wrong type, a value that is not allowed, an unknown variant or an argument
  without dashes is one line on stderr and exit code 2.

In Python: `srpo_jax.config.load.load_config("configs/ssui_mini.py:dpo", ["--config.seed=1"])`.

This page is made from the code: `python -m srpo_jax.config.docs > docs/configuration.md`.
"""


def fields(source: str) -> dict[str, tuple[str, str]]:
    """{"train.steps": (default, description)} of the text of configs/common.py."""
    found = {}
    for line in source.splitlines():
        match = LINE.fullmatch(line)
        if match:
            found[match[1]] = (match[2], match[3])
    return found


def page() -> str:
    """The whole page as Markdown."""
    found = fields((REPOSITORY / "configs" / "common.py").read_text())
    parts = [HEAD]
    for section in ("", *SECTIONS):
        names = [name for name in RULES if name.rpartition(".")[0] == section]
        parts.append(f"## {section or 'the run'}\n")
        parts.append("| field | default | allowed | meaning |\n|---|---|---|---|")
        for name in names:
            default, text = found[name]
            allowed = RULES[name].allowed().replace("|", "\\|")
            parts.append(f"| `{name}` | `{default}` | {allowed} | {text} |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
