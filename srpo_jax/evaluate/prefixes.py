"""The fixed bank of texts that answers can be made to begin with: forced_prefixes.yaml."""

from __future__ import annotations

import difflib
import pathlib

import yaml

from srpo_jax.errors import UserError

FILE = pathlib.Path(__file__).with_name("forced_prefixes.yaml")


def read_bank() -> dict[str, str]:
    """{name: text}."""
    rows = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name: row["text"] for name, row in rows.items()}


def forced_prefix(name: str) -> str:
    """The text of this name, "" for no name. Errors: UserError."""
    if not name:
        return ""
    bank = read_bank()
    if name not in bank:
        near = difflib.get_close_matches(name, bank, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"eval.forced_prefix={name!r} does not exist; {', '.join(bank)}{hint}")
    return bank[name]
