"""From the words of a command line to a Command; whatever no option takes is a UserError."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from srpo_jax.buckets.objects import address_in, bucket_and_name, is_url
from srpo_jax.command.table import VERBS
from srpo_jax.command.verb import Command, Verb
from srpo_jax.errors import UserError, one_line

# Options that name no file or folder, and may hold an address.
NO_PLACES = ("base_url", "served_model", "question", "source", "license")
DEFINE = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, str: flags.DEFINE_string}


def find_verb(words: Sequence[str]) -> tuple[str, Verb | None, list[str]]:
    """(name, verb, the words behind it): `checkpoints check DIR` is the verb "checkpoints check".

    A verb that has others behind it is found alone when none is named. Without words it is None.
    Errors: UserError for an unknown verb.
    """
    name, verbs, words, verb = "", VERBS, list(words), None
    while words and verbs and (verb is None or not words[0].startswith("-")):
        word = words.pop(0)
        name = f"{name} {word}".strip()
        if word not in verbs:
            near = difflib.get_close_matches(word, verbs, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(verbs)}"
            raise UserError(f"unknown verb {name!r}; {hint}")
        verb = verbs[word]
        verbs = verb.verbs
    return name, verb, words


def parse(verb: str, args: Sequence[str]) -> Command:
    """Splits a verb's arguments; UserError for anything that no option takes."""
    name, spec, args = find_verb([verb, *args])
    assert spec  # there is a word
    if spec.passed_on:
        return Command(name, arguments=tuple(args))
    if spec.verbs and not spec.alone:
        raise UserError(
            f"`srpo {name}` does nothing alone; behind it stands {', '.join(spec.verbs)}"
        )
    overrides, rest = _split_overrides(args)
    rest = _fill_bare(rest, spec.bare)
    values = flags.FlagValues()
    if spec.config:
        flags.DEFINE_multi_string("config", [], "", flag_values=values)
    if spec.workdir:
        flags.DEFINE_string("workdir", None, "", flag_values=values)
    for option, (default, _) in spec.options.items():
        DEFINE[type(default)](option, default, "", flag_values=values)
    try:
        left = values(["srpo", *rest])[1:]
    except flags.Error as error:
        raise UserError(_flag_error(str(error), name, spec)) from None

    for option in values:  # an unset variable of a shell must not be taken for the default
        if values[option].present and values[option].value == "":
            raise UserError(f"--{option}= is empty: give a value, or leave it out")
    for option in spec.positional:
        if left and not values[option].value:
            values[option].value = left.pop(0)
    dashed = [word for word in left if "=" in word] if spec.several else left
    if dashed:
        raise UserError(_leftover(dashed[0], spec))
    if spec.several and not left:
        raise UserError(f"{spec.several.upper()} is missing, as in: {spec.example}")
    workdir = (values["workdir"].value or "") if spec.workdir else ""
    instead = spec.without_workdir and values[spec.without_workdir].value
    if spec.workdir and not workdir and not instead:
        if spec.workdir == "required":
            raise UserError(f"--workdir=DIR is missing, as in: {spec.example}")
        workdir = spec.workdir
    files = (values["config"].value or []) if spec.config else []
    if len(files) > 1:
        raise UserError(f"--config is given {len(files)} times; give one file")
    if spec.config == "required" and not files:
        raise UserError(f"--config=FILE is missing, as in: {spec.example}")
    if overrides and not spec.config:
        raise UserError(f"`srpo {name}` takes no config, so {overrides[0]} means nothing here")
    config_file = files[0] if files else spec.config or ""
    options = {option: values[option].value for option in spec.options}
    given = {option: value for option, value in options.items() if option not in NO_PLACES}
    runs = {"workdir": workdir, **{option: given.pop(option) or "" for option in spec.runs}}
    words = left if spec.several == "workdir" else []
    for place in (*runs.values(), *words):
        if is_url(place):
            bucket_and_name(place)  # it is well written
    folders = {option: place for option, place in runs.items() if not is_url(place)}
    others = [word for word in left if word not in words or not is_url(word)]
    _check_places({**folders, "config": config_file, **given}, others)
    return Command(name, config_file, tuple(overrides), workdir, options, tuple(left))


def _check_places(options: Mapping[str, Any], words: Sequence[str]) -> None:
    """Errors: UserError for an address where a file or folder is named: it would be taken for the
    name of one.
    """
    named = [*((f"--{name}=", value) for name, value in options.items()), *(("", w) for w in words)]
    for option, value in named:
        if isinstance(value, str) and (address := address_in(value)):
            raise UserError(
                f"{option}{one_line(value, 200)}: {address} is no file or folder; in a bucket "
                "(gs://BUCKET/PATH) may lie a workdir, config.model.path and config.data.*; mount "
                "it for anything else: docs/places.md"
            )


def _split_overrides(args: list[str]) -> tuple[list[str], list[str]]:
    """(--config.a.b=value items, everything else). `--config.a.b value` becomes one item."""
    overrides, rest = [], []
    i = 0
    while i < len(args):
        arg = args[i]
        if arg.startswith(("--config.", "-config.", "--noconfig.", "-noconfig.")):
            bare = "=" not in arg and "noconfig" not in arg
            if bare and i + 1 < len(args) and not args[i + 1].startswith("-"):
                i += 1
                arg = f"{arg}={args[i]}"
            overrides.append(arg)
        else:
            rest.append(arg)
        i += 1
    return overrides, rest


def _fill_bare(args: list[str], bare: dict[str, str]) -> list[str]:
    """`--profile`, with no value behind it, becomes --profile=10:13."""
    found = []
    for arg, behind in zip(args, [*args[1:], "-"]):
        name = arg.lstrip("-")
        alone = arg.startswith("-") and name in bare and behind.startswith("-")
        found.append(f"{arg}={bare[name]}" if alone else arg)
    return found


def _own_options(spec: Verb) -> list[str]:
    return ["config"] * bool(spec.config) + ["workdir"] * bool(spec.workdir) + [*spec.options]


def _flag_error(message: str, name: str, spec: Verb) -> str:
    message = one_line(message)
    if message.startswith("Unknown command line flag"):
        option = message.split("'")[1]
        near = difflib.get_close_matches(option, _own_options(spec), n=1)
        hint = f"did you mean --{near[0]}?" if near else f"see srpo {name} --help"
        return f"unknown option --{option}; {hint}"
    return message


def _leftover(arg: str, spec: Verb) -> str:
    name = arg.split("=")[0]
    own = {"config", "workdir", *spec.options}
    if "=" in arg and (name.startswith("config.") or name in own):
        return f"{arg!r} has no dashes; did you mean --{arg}?"
    if "=" in arg and "." in name:
        return f"{arg!r} is not an option; did you mean --config.{arg}?"
    return f"{arg!r} is left over; options are written --name=value"
