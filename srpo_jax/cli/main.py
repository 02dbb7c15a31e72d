"""The console script: `srpo <verb> --config=FILE[:VARIANT] --config.a.b=value --workdir=DIR`.

Exit codes: 0 done; 2 the command or the data is wrong (one line on stderr says what); 1 a failure
that is not the user's (disk full, a checkpoint that does not verify, a bug, which keeps its
traceback); 130 interrupted by Ctrl-C.
Everything heavy is imported inside the verbs (cli_verbs.py), so help and mistakes answer at once.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys

from absl import flags

from srpo_jax import __version__
from srpo_jax.cli.command import Command
from srpo_jax.cli.options import DEMO_CONFIG, VERBS
from srpo_jax.errors import RunFailure, UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
AGAIN = ("explore", "train", "plan")  # verbs that go on where an interruption stopped them
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)


DEFINE = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, str: flags.DEFINE_string}


def main(argv: list[str] | None = None) -> int:
    """Runs one command (default: sys.argv) and returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    name = argv[0] if argv and argv[0] in VERBS else ""
    prefix = f"srpo {name}".strip()
    try:
        return _run(argv)
    except UserError as error:
        return _fail(f"{prefix}: error: {error}", 2)
    except RunFailure as error:
        return _fail(f"{prefix}: error: {error}", 1)
    except KeyboardInterrupt:
        again = "; run the same command again to go on" if name in AGAIN else ""
        return _fail(f"{prefix}: interrupted{again}", 130)
    except BrokenPipeError:  # `srpo ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno in NO_SPACE:
            return _fail(f"{prefix}: error: no space left on the disk: {_what(error)}", 1)
        if error.errno in NO_ACCESS:
            return _fail(f"{prefix}: error: no permission: {_what(error)}", 1)
        raise


def _fail(line: str, code: int) -> int:
    print(" ".join(line.split()), file=sys.stderr, flush=True)
    return code


def _what(error: OSError) -> str:
    return f"{error.filename} ({error.strerror})" if error.filename else str(error)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "-help", "help"):
        print(main_help())
        return 0
    if argv[0] == "--version":
        print(f"srpo_jax {__version__}")
        return 0
    verb = argv[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(VERBS)}"
        raise UserError(f"unknown verb {verb!r}; {hint}")
    if any(arg in ("-h", "--help", "-help", "--helpfull") for arg in argv[1:]):
        print(verb_help(verb))
        return 0
    command = parse(verb, argv[1:])
    return getattr(importlib.import_module("srpo_jax.cli.verbs"), verb)(command) or 0


def parse(verb: str, args: list[str]) -> Command:
    """Splits a verb's arguments; UserError for anything that no option takes."""
    spec = VERBS[verb]
    overrides, rest = _split_overrides(args)
    rest = _fill_bare(rest, spec.bare)
    values = flags.FlagValues()
    if spec.config:
        flags.DEFINE_multi_string("config", [], "", flag_values=values)
    if spec.workdir:
        flags.DEFINE_string("workdir", None, "", flag_values=values)
    for name, (default, _) in spec.options.items():
        DEFINE[type(default)](name, default, "", flag_values=values)
    try:
        left = values(["srpo", *rest])[1:]
    except flags.Error as error:
        raise UserError(_flag_error(str(error), verb)) from None

    workdir = (values["workdir"].value or "") if spec.workdir else ""
    if verb == "report" and len(left) == 1 and not workdir:
        workdir, left = left[0], []
    if left:
        raise UserError(_leftover(left[0], verb))
    if spec.workdir and not workdir:
        if spec.workdir == "required":
            raise UserError(f"--workdir=DIR is missing, as in: {spec.example}")
        workdir = spec.workdir
    files = values["config"].value if spec.config else []
    if len(files) > 1:
        raise UserError(f"--config is given {len(files)} times; give one file")
    if spec.config == "required" and not files:
        raise UserError(f"--config=FILE is missing, as in: {spec.example}")
    if overrides and not spec.config:
        raise UserError(f"`srpo {verb}` takes no config, so {overrides[0]} means nothing here")
    config_file = files[0] if files else _demo_config() if spec.config else ""
    options = {name: values[name].value for name in spec.options}
    return Command(verb, config_file, tuple(overrides), workdir, options)


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


def _demo_config() -> str:
    """configs/ssui_mini.py of the working directory, else of the repository around the package."""
    import pathlib

    from srpo_jax.config.load import REPOSITORY

    here = pathlib.Path(DEMO_CONFIG)
    return str(here if here.is_file() else REPOSITORY / DEMO_CONFIG)


def _flag_error(message: str, verb: str) -> str:
    message = " ".join(message.split())
    if message.startswith("Unknown command line flag"):
        name = message.split("'")[1]
        known = ["config"] * bool(VERBS[verb].config) + ["workdir"] * bool(VERBS[verb].workdir)
        near = difflib.get_close_matches(name, [*known, *VERBS[verb].options], n=1)
        hint = f"did you mean --{near[0]}?" if near else f"see srpo {verb} --help"
        return f"unknown option --{name}; {hint}"
    return message


def _leftover(arg: str, verb: str) -> str:
    name = arg.split("=")[0]
    own = {"config", "workdir", *VERBS[verb].options}
    if "=" in arg and (name.startswith("config.") or name in own):
        return f"{arg!r} has no dashes; did you mean --{arg}?"
    if "=" in arg and "." in name:
        return f"{arg!r} is not an option; did you mean --config.{arg}?"
    return f"{arg!r} is left over; options are written --name=value"


def main_help() -> str:
    usage = "usage: srpo <verb> [--config=FILE[:VARIANT]] [--config.a.b=value] [--workdir=DIR]"
    lines = [usage, ""]
    lines += [f"  {name:<9}{verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(lines + ["", "First try:  srpo demo", "More:       srpo <verb> --help"])


def verb_help(name: str) -> str:
    verb = VERBS[name]
    options = {}
    if verb.config:
        default = "" if verb.config == "required" else f"; default {verb.config}"
        options["config=FILE[:VARIANT]"] = f"Python file with get_config(){default}"
        options["config.a.b=value"] = "sets one field; docs/configuration.md lists them"
    if verb.workdir:
        default = "" if verb.workdir == "required" else f"; default {verb.workdir}"
        options["workdir=DIR"] = f"folder of the run{default}"
    for option, (default, text) in verb.options.items():
        shown = option if isinstance(default, bool) else f"{option}={option.upper()}"
        if option in verb.bare:
            shown = f"{option}[={verb.bare[option]}]"
        options[shown] = text + (f"; default {default}" if default else "")
    usage = "srpo report WORKDIR [options]" if name == "report" else f"srpo {name} [options]"
    lines = [f"usage: {usage}", "", f"{name}: {verb.summary}."] + verb.about.splitlines()
    lines += [""] * bool(options) + [f"  --{key:<24}{text}" for key, text in options.items()]
    return "\n".join(lines + ["", f"example: {verb.example}"])


if __name__ == "__main__":
    sys.exit(main())
