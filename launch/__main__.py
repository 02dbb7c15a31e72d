"""`python -m launch [--target=local] [--devices=8] [--submit] -- train --config=... --workdir=...`

Prints the command that it would run; with --submit it runs it and returns its exit code.
"""

from __future__ import annotations

import argparse
import sys

from launch.local import Local, render, run
from srpo_jax.errors import UserError

TARGETS = ("local",)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(message)  # one line, not usage and one line


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    own, dashes, command = argv, [], []
    if "--" in argv:
        at = argv.index("--")
        own, dashes, command = argv[:at], argv[at : at + 1], argv[at + 1 :]
    parser = _Parser(
        prog="python -m launch",
        usage="python -m launch [--target=local] [--devices=N] [--submit] -- VERB [options]",
        description="Prints the command it would run; --submit runs it.",
        epilog="example: python -m launch --devices=8 -- train --config=configs/ssui_mini.py "
        "--config.mesh.tensor=2 --workdir=runs/mini",
        allow_abbrev=False,
    )
    parser.add_argument("--target", default="local", help="where to run: local (the default)")
    parser.add_argument("--devices", type=int, default=1, help="virtual CPU devices; default 1")
    parser.add_argument("--processes", type=int, default=1, help="only 1 is supported")
    parser.add_argument("--submit", action="store_true", help="run it instead of printing it")
    try:
        options, left = parser.parse_known_args(own)
        if left:
            hint = "" if dashes else "; the command of srpo stands behind --"
            raise UserError(f"unknown argument {left[0]!r}{hint}")
        if options.target not in TARGETS:
            raise UserError(f"--target={options.target}: there is {', '.join(TARGETS)}")
        spec = Local(tuple(command), devices=options.devices, processes=options.processes)
    except UserError as error:
        print(f"launch: error: {error}", file=sys.stderr)
        return 2
    if options.submit:
        return run(spec)
    print(render(spec))
    print("# nothing was started; --submit runs it", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
