"""The console script: `srpo <verb> --config=FILE[:VARIANT] --config.a.b=value --workdir=DIR`.

Exit codes: 0 done; 2 the command or the data is wrong (one line on stderr says what); 1 a failure
that is not the user's (disk full, a checkpoint that does not verify, a bug, which keeps its
traceback); 130 interrupted by Ctrl-C.
Everything heavy is imported inside the verbs (verbs.py), so help and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TextIO, cast

from srpo_jax import __version__
from srpo_jax.buckets.objects import is_url
from srpo_jax.buckets.workdir import home_of, open_workdir
from srpo_jax.command.help import main_help, verb_help
from srpo_jax.command.parse import find_verb, parse
from srpo_jax.command.verb import Command, Verb
from srpo_jax.console import say
from srpo_jax.errors import RunFailure, UserError, one_line
from srpo_jax.keepers import by_address, is_kept

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HELP = ("-h", "--help", "-help", "--helpfull")
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
# A file where a folder was to be, or the other way round; a name or a link that cannot be.
NO_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def main(argv: list[str] | None = None) -> int:
    """Runs one command (default: sys.argv) and returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    name, verb = _known(argv)
    prefix = f"srpo {name}".strip()
    try:
        return _run(argv)
    except UserError as error:
        return _fail(f"{prefix}: error: {error}", 2)
    except RunFailure as error:
        return _fail(f"{prefix}: error: {error}", 1)
    except KeyboardInterrupt:
        again = "; run the same command again to go on" if verb and verb.resumes else ""
        return _fail(f"{prefix}: interrupted{again}", 130)
    except BrokenPipeError:  # `srpo ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno in NO_SPACE:
            return _fail(f"{prefix}: error: no space left on the disk: {_what(error)}", 1)
        if error.errno in NO_ACCESS:
            return _fail(f"{prefix}: error: no permission: {_what(error)}", 1)
        if error.errno in NO_PLACE:
            return _fail(f"{prefix}: error: {_what(error)}", 2)
        raise


def _fail(line: str, code: int) -> int:
    say(one_line(line), to=sys.stderr)
    return code


def _what(error: OSError) -> str:
    file = error.filename2 or error.filename  # of two, the one that is written
    return f"{file} ({error.strerror})" if file else str(error)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in (*HELP, "help"):
        print(main_help())
        return 0
    if argv[0] == "--version":
        print(f"srpo_jax {__version__}")
        return 0
    name, verb, args = find_verb(argv)
    assert verb  # argv is not empty
    if not verb.passed_on and any(arg in HELP for arg in args):
        print(verb_help(name, verb))
        return 0
    command = parse(argv[0], argv[1:])
    with _opened(command, verb) as command:
        does = getattr(importlib.import_module("srpo_jax.cli.verbs"), name.replace(" ", "_"))
        return does(command) or 0


@contextlib.contextmanager
def _opened(command: Command, verb: Verb) -> Iterator[Command]:
    """The command with folders of this host for the workdirs that lie in a bucket."""
    with contextlib.ExitStack() as stack:

        def place(spec: str, write: bool = False, weights: bool = False) -> str:
            if not is_url(spec):
                return spec
            return str(stack.enter_context(open_workdir(spec, write=write, weights=weights)))

        options = {
            name: place(value, weights=name == "model") if name in verb.runs and value else value
            for name, value in command.options.items()
        }
        words = tuple(map(place, command.arguments)) if verb.several else command.arguments
        # The next round samples with the export of the one before; exports are compared.
        loads = command.verb in ("run", "demo")
        reads = command.verb == "checkpoints check" or (
            command.verb in ("export", "report") and bool(command.options["out"])
        )
        workdir = command.workdir.rstrip("/") if is_url(command.workdir) else command.workdir
        # The report of a round looks at the round after it, too.
        is_report = command.verb == "report" and is_url(workdir)
        home = home_of(workdir, "rounds.json") if is_report else workdir
        workdir = place(home, write=not reads, weights=loads) + workdir[len(home) :]
        if is_kept():
            out, err = (cast(Any, _ByAddress(stream)) for stream in (sys.stdout, sys.stderr))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
        try:
            yield replace(command, workdir=workdir, options=options, arguments=words)
        except (UserError, RunFailure) as error:
            raise type(error)(by_address(str(error))) from error


class _ByAddress:
    """A stream on which a workdir in a bucket is called by its address, not by the folder that
    stands for it.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(by_address(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _known(argv: list[str]) -> tuple[str, Verb | None]:
    """The verb that an error is told of; none if it is the verb that is wrong."""
    try:
        return find_verb(argv)[:2]
    except UserError:
        return "", None


if __name__ == "__main__":
    sys.exit(main())
