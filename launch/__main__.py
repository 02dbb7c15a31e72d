"""`srpo launch --target=T [options] [--submit] -- train --config=... --workdir=...`

Prints what it would run; with --submit it runs it and returns its exit code.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys

from srpo_jax.errors import UserError, one_line
from srpo_jax.launch import jobset, local, slurm, tpu_vm, xpk
from srpo_jax.launch.spec import TARGETS, Spec, options

# target: (its module, the program that --submit needs, whether that reads the text from stdin)
CLUSTERS = {
    "jobset": (jobset, "kubectl", True),
    "tpu_vm": (tpu_vm, "gcloud", False),
    "xpk": (xpk, "xpk", False),
    "slurm": (slurm, "sbatch", True),
}
EPILOG = """examples:
  srpo launch --processes=2 --devices=4 --submit -- train --config=configs/ssui_mini.py \\
    --workdir=runs/mini
  srpo launch --target=jobset --name=mine --topology=v6e:8x8 --image=IMAGE --bucket=BUCKET \\
    -- train --config=configs/pod.py --config.model.path=/bucket/model --workdir=/bucket/runs/mine
docs/launch.md has a page per target."""  # noqa: E501


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(message)  # one line, not usage and one line


def main(argv: list[str] | None = None) -> int:
    """The verb `srpo launch`; returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    own = argv[: argv.index("--")] if "--" in argv else argv
    if {"-h", "--help"} & set(own):
        print(_parser().format_help().rstrip("\n"))
        return 0
    try:
        spec, submitted = parse(argv)
        return submit(spec) if submitted else _print(spec)
    except UserError as error:
        print(one_line(f"srpo launch: error: {error}"), file=sys.stderr)
        return 2


def parse(argv: list[str]) -> tuple[Spec, bool]:
    """(the spec, whether to submit it). Errors: UserError."""
    own, dashes, command = argv, [], []
    if "--" in argv:
        at = argv.index("--")
        own, dashes, command = argv[:at], argv[at : at + 1], argv[at + 1 :]
    given, left = _parser().parse_known_args(own)
    if left:
        hint = "" if dashes else "; the command of srpo stands behind --"
        raise UserError(f"unknown argument {left[0]!r}{hint}")
    values = {field.name: getattr(given, field.name) for field in options()}
    try:
        values["program"] = tuple(shlex.split(values["program"] or ""))
    except ValueError as error:
        raise UserError(f"--program={values['program']}: {error}") from None
    values |= {name: tuple(values[name]) for name in ("env", "secret")}
    return Spec(given.target, tuple(command), **values), given.submit


def submit(spec: Spec) -> int:
    """Runs it. Errors: UserError when the target's own program is not there."""
    if spec.target == "local":
        return local.run(spec)
    module, tool, by_stdin = CLUSTERS[spec.target]
    text, argv = module.render(spec), module.submit_argv(spec)
    if shutil.which(tool) is None:
        raise UserError(f"--submit: {tool} is not on PATH, and --target={spec.target} needs it")
    return subprocess.run(argv, input=text if by_stdin else None, text=True).returncode


def render(spec: Spec) -> str:
    """What would be run."""
    module = local if spec.target == "local" else CLUSTERS[spec.target][0]
    return module.render(spec)


def _print(spec: Spec) -> int:
    text = render(spec)
    print(text.rstrip("\n"))
    if spec.target in CLUSTERS and CLUSTERS[spec.target][2]:
        command = shlex.join(CLUSTERS[spec.target][0].submit_argv(spec))
        print(f"# --submit hands this to: {command}", file=sys.stderr)
    print("# nothing was started; --submit runs it", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="srpo launch",
        usage="srpo launch [--target=T] [options] [--submit] -- VERB [options of srpo]",
        description="Prints what it would run; --submit runs it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--target", default="local", help=f"{', '.join(TARGETS)}; default local")
    parser.add_argument("--submit", action="store_true", help="run it instead of printing it")
    for field in options():
        default, meta = field.default, field.metadata
        only = "" if meta["targets"] == TARGETS else f" [{', '.join(meta['targets'])}]"
        how = {"default": default, "help": meta["help"] + only}
        if default is False:
            how["action"] = "store_true"
        elif field.name in ("env", "secret"):
            how |= {"action": "append", "default": [], "metavar": "A=B"}
        elif field.name != "program" and not isinstance(default, str):
            how |= {"type": int, "metavar": "N"}
        else:
            how |= {"default": default or "", "metavar": field.name.upper()}
        parser.add_argument(f"--{field.name}", **how)
    return parser


if __name__ == "__main__":
    sys.exit(main())
