"""Makes docs/configuration.md: `python -m srpo_jax.command.config_page > docs/configuration.md`.

The table is made from the declarations in srpo_jax/config/sections.py and from the registries, so
the page cannot say anything else than the code (a test compares them).
"""

from __future__ import annotations

from srpo_jax.arbiter.registry import ARBITERS
from srpo_jax.config.fields import FIELDS, SECTIONS, Field
from srpo_jax.config.rules import shown
from srpo_jax.data_pipelines.path_formats.registry import FORMATS
from srpo_jax.train.losses.pairwise import LOSSES

HEAD = """# Configuration

An experiment is one Python file with `get_config()`, like those in `configs/`; it starts from
`from srpo_jax.configs import common` and changes a few fields of `common.get_config()`. A config
file is a program: loading one runs it.

    srpo train --config=configs/ssui_mini.py:dpo --config.train.steps=50 --workdir=runs/dpo

* `--config=FILE` or `--config=FILE:VARIANT`: which file, and which variant of it. A file of the
  working directory comes first; `configs/NAME.py` that is not there is the one that comes with
  srpo_jax.
* `--config.section.field=value`: one field. Text needs no quotes; a tuple is written
  `--config.train.freeze="('vision/.*',)"`.
* A misspelt field, a wrong type, a value that is not allowed, an unknown variant or an argument
  without dashes is one line on stderr and exit code 2.

In Python: `srpo_jax.load_config("configs/ssui_mini.py:dpo", ["--config.seed=1"])`,
whose result cannot be changed (`dataclasses.replace` makes another); that of `get_config()` can.

This page is made from the code: `python -m srpo_jax.command.config_page > docs/configuration.md`.
"""


# What the registries hold: their names are allowed, and a user's own things.
REGISTERED = {"objective.contrast": LOSSES, "arbiter.kind": ARBITERS, "format.kind": FORMATS}


def allowed_in(field: Field) -> str:
    """What a field may hold, with the names that are registered for it."""
    if field.name in REGISTERED:
        return " | ".join([*REGISTERED[field.name], "module:Class"])
    return field.rule.allowed()


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for section in ("", *SECTIONS):
        parts.append(f"## {section or 'the run'}\n")
        parts.append("| field | default | allowed | meaning |\n|---|---|---|---|")
        for field in FIELDS.values():
            if field.section == section:
                allowed = allowed_in(field).replace("|", "\\|")
                cells = (f"`{field.name}`", f"`{shown(field.default)}`", allowed, field.help)
                parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
