"""What `srpo --help` and `srpo VERB --help` print, made from the tables; 100 columns at most."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

from srpo_jax.command.table import READ_BY, VERBS
from srpo_jax.command.verb import Verb
from srpo_jax.config.fields import FIELDS, SECTIONS, Field
from srpo_jax.config.rules import shown

COLUMNS = 100


def main_help() -> str:
    """Of the command: its verbs."""
    usage = "usage: srpo <verb> [--config=FILE[:VARIANT]] [--config.a.b=value] [--workdir=DIR]"
    lines = [usage, "", *_summaries(VERBS)]
    return "\n".join(lines + ["", "First try:  srpo demo", "More:       srpo <verb> --help"])


def verb_help(name: str, verb: Verb) -> str:
    """Of one verb: its options, an example, and the fields of the config that it reads."""
    head = [f"{name}: {verb.summary}."] + verb.about.splitlines()
    if verb.verbs and not verb.alone:
        return "\n".join([f"usage: srpo {name} <verb>", "", *head, "", *_summaries(verb.verbs)])
    if verb.verbs:
        behind = {f"{name} {inner}": each for inner, each in verb.verbs.items()}
        head += ["", "There is also:", *_summaries(behind)]
    options = {}
    if verb.config:
        default = "" if verb.config == "required" else f"; default {verb.config}"
        options["config=FILE[:VARIANT]"] = f"Python file with get_config(){default}"
        options["config.a.b=value"] = "sets one field; docs/configuration.md lists them"
    if verb.workdir:
        default = "" if verb.workdir == "required" else f"; default {verb.workdir}"
        options["workdir=DIR"] = f"folder of the run{default}"
    for option, (default, text) in verb.options.items():
        value = option if isinstance(default, bool) else f"{option}={option.upper()}"
        if option in verb.bare:
            value = f"{option}[={verb.bare[option]}]"
        options[value] = text + (f"; default {default}" if default else "")
    words = "".join(f"{option.upper()} " for option in verb.positional)
    words += f"{verb.several.upper()}... " if verb.several else ""
    lines = [f"usage: srpo {name} {words}[options]", *head]
    lines += [""] * bool(options) + [f"  --{key:<23} {text}" for key, text in options.items()]
    lines += ["", f"example: {verb.example}"]
    return "\n".join([*lines, *_fields_read(name)])


def _summaries(verbs: Mapping[str, Verb]) -> list[str]:
    width = max(map(len, verbs)) + 2
    return [f"  {name:<{width}}{verb.summary}" for name, verb in verbs.items()]


def _fields_read(verb: str) -> Iterable[str]:
    """A line or two for every field that the verb reads: name, default, help, by section."""
    sections = [section for section in ("", *SECTIONS) if verb in READ_BY[section]]
    if sections:
        yield from ("", "fields that it reads of the config, with their defaults:")
    for section in sections:
        fields = [field for field in FIELDS.values() if field.section == section]
        yield ""
        width = max(len(_flag(field)) for field in fields) + 2
        for field in fields:
            first, later = f"  {_flag(field):<{width}}", " " * (width + 2)
            yield from textwrap.wrap(
                field.help, COLUMNS, initial_indent=first, subsequent_indent=later
            )


def _flag(field: Field) -> str:
    return f"--config.{field.name}={shown(field.default)}"
