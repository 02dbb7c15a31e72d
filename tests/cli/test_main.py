"""The command line: what a user can get wrong is one line and exit code 2, at once."""

import subprocess
import sys

import pytest

from srpo_jax.cli import main as cli
from srpo_jax.cli import verbs as cli_verbs
from srpo_jax.command.parse import parse
from srpo_jax.command.table import READ_BY, VERBS
from srpo_jax.config.fields import FIELDS, SECTIONS
from srpo_jax.errors import RunFailure, UserError
from tests.support import ROOT

MINI = f"--config={ROOT}/configs/ssui_mini.py"
WORKDIR = "--workdir=never_made"


def run(capsys, *argv):
    """(exit code, stdout, stderr) of one command in this process."""
    code = cli.main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


WRONG = [
    (["trian"], "did you mean train?"),
    (["frobnicate"], "there is demo, explore"),
    (["train", WORKDIR], "--config=FILE is missing"),
    (["train", MINI], "--workdir=DIR is missing"),
    (["train", MINI, WORKDIR, "config.train.steps=3"], "did you mean --config.train.steps=3?"),
    (["train", MINI, WORKDIR, "train.steps=3"], "did you mean --config.train.steps=3?"),
    (["train", MINI, WORKDIR, "extra"], "'extra' is left over"),
    (["train", MINI, "workdir=x"], "did you mean --workdir=x?"),
    (["train", MINI, WORKDIR, "--confg=3"], "did you mean --config?"),
    (["train", MINI, MINI, WORKDIR], "--config is given 2 times"),
    (
        ["train", MINI + ":huge", WORKDIR],
        "unknown variant 'huge'; there is srpo, sft, sft_filtered, taught",
    ),
    (["train", MINI.replace("mini", "mni"), WORKDIR], "did you mean"),
    (["train", MINI, WORKDIR, "--config.train.stesp=3"], "did you mean config.train.steps?"),
    (["train", MINI, WORKDIR, "--config.train.lr=3"], "did you mean config.train.learning_rate?"),
    (["train", MINI, WORKDIR, "--config.train=3"], "is a section, not a field"),
    (["train", MINI, WORKDIR, "--config.train.steps=1.5"], "is '1.5'; allowed is a whole number"),
    (["train", MINI, WORKDIR, "--config.train.steps", "many"], "is 'many'; allowed is"),
    (["train", MINI, WORKDIR, "--config.train.learning_rate=nan"], "is nan; allowed is a number"),
    (["train", MINI, WORKDIR, "--config.train.learning_rate=-1"], "is -1.0; allowed is"),
    (["train", MINI, WORKDIR, "--config.train.freeze=1,2"], "is (1, 2); allowed is a tuple of"),
    (["train", MINI, WORKDIR, "--config.objective.contrast=dop"], "simpo, ipo; did you mean dpo?"),
    (["train", MINI, WORKDIR, "--profile=5:5"], "--profile=5:5: must be START:STOP"),
    (["eval", MINI, WORKDIR, "--name=../x"], "must be a plain folder name"),
    (["eval", MINI, WORKDIR, "--model=nowhere"], "no such directory"),
    (["demo", "--methods=base,ppo"], "unknown method 'ppo'"),
    (["demo", "--seeds=x"], "--seeds=x"),
    (["export", "--workdir=nowhere"], "does not exist"),
    (["report", "nowhere"], "does not exist"),
    (["eval", "--config=x.py", "--workdir=w", "--benchmark="], "--benchmark= is empty: give a"),
    (["demo", "--workdir="], "--workdir= is empty: give a value, or leave it out"),
    (["report", "nowhere", "--config.train.steps=3"], "takes no config"),
    (["report", "nowhere", "--workdir=x"], "'nowhere' is left over"),
    (["launch", "--target=moon", "--", "env"], "--target=moon: there is local"),
    (["launch", "train"], "the command of srpo stands behind --"),
    (["checkpoints"], "does nothing alone; behind it stands check"),
    (["checkpoints", "chekc"], "unknown verb 'checkpoints chekc'; did you mean check?"),
    (["checkpoints", "check"], "--workdir=DIR is missing, as in: srpo checkpoints check"),
    (["checkpoints", "check", "x", "--step=3"], "unknown option --step; see srpo checkpoints"),
]


@pytest.mark.parametrize("argv, said", WRONG, ids=[" ".join(a[:1] + a[-1:]) for a, _ in WRONG])
def test_a_mistake_is_one_line_and_exit_code_2(capsys, argv, said):
    """Every mistake names itself in exactly one line on stderr, prints nothing else, makes
    nothing, and ends with exit code 2."""
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("srpo")
    assert said in err


def test_help_is_short_and_has_an_example(capsys):
    """`srpo` and `srpo --help` list the verbs; every verb's --help begins with a screen that names
    its options and shows a command, in 100 columns."""
    assert run(capsys) == run(capsys, "--help")
    code, out, err = run(capsys, "--help")
    assert code == 0 and err == "" and all(f"  {name}" in out for name in VERBS)
    inner = {
        f"{name} {below}": v for name, verb in VERBS.items() for below, v in verb.verbs.items()
    }
    for name, verb in {**VERBS, **inner}.items():
        code, out, err = run(capsys, *name.split(), "--help")
        assert code == 0 and err == "" and out.startswith(f"usage: srpo {name}"), name
        assert max(map(len, out.splitlines())) <= 100
        if verb.passed_on:
            continue
        assert not verb.alone or all(f"  {name} {below}" in out for below in verb.verbs)
        if verb.verbs and not verb.alone:
            assert all(f"  {below}" in out for below in verb.verbs)
            continue
        screen = out.partition("\nfields that it reads")[0]
        assert verb.example in screen and len(screen.splitlines()) <= 24  # a terminal
        assert all(f"  --{option}" in screen for option in verb.options)


def test_help_lists_the_fields_that_a_verb_reads(capsys):
    """Every field of a section that READ_BY gives to the verb, with default and meaning; no other.
    A verb without a config lists none, and no section or verb is forgotten."""
    assert set(READ_BY) == {"", *SECTIONS}
    below = {f"{name} {k}": v for name, verb in VERBS.items() for k, v in verb.verbs.items()}
    every = {**VERBS, **below}
    assert {verb for verbs in READ_BY.values() for verb in verbs} == {
        name for name, verb in every.items() if verb.config
    }
    for name in every:
        out = run(capsys, *name.split(), "--help")[1]
        listed = {line.split("=")[0].strip() for line in out.splitlines() if "  --config." in line}
        read = {f"--config.{f.name}" for f in FIELDS.values() if name in READ_BY[f.section]}
        assert listed - {"--config.a.b"} == read, name
    words = " ".join(run(capsys, "train", "--help")[1].split())
    assert "--config.train.learning_rate=1e-5 peak, after the warm-up" in words


def test_launch_gets_its_arguments_as_they_are(capsys, monkeypatch):
    """`srpo launch` is `python -m srpo_jax.launch`: same text, and help that names the verb."""
    monkeypatch.chdir(ROOT)
    argv = ["--processes=2", "--", "train", "--config=configs/ssui_mini.py", WORKDIR]
    code, out, _ = run(capsys, "launch", *argv)
    assert code == 0 and out.count("SRPO_PROCESS_ID") == 2
    module = [sys.executable, "-m", "srpo_jax.launch", *argv]
    assert subprocess.run(module, capture_output=True, text=True).stdout == out
    assert "\n  --gpus_per_node" in run(capsys, "launch", "--help")[1]


def test_checkpoints_are_looked_at(capsys, tmp_path):
    """`srpo checkpoints check WORKDIR` fails where there is none."""
    assert run(capsys, "checkpoints", "check", str(tmp_path)) == (
        1,
        f"{tmp_path}/checkpoints: no checkpoints\n",
        "",
    )


def test_mistakes_and_help_do_not_import_jax():
    """A mistake is answered at once: no jax, no transformers, through the real entry point."""
    code = (
        "import sys; from srpo_jax.cli import main as cli\n"
        f"codes = [cli.main(a) for a in (['train', '{MINI}', '{WORKDIR}', '--config.nam=x'],"
        " ['train', '--help'])]\n"
        "assert codes == [2, 0], codes\n"
        "assert not {'jax', 'flax', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1


def test_judging_may_begin_before_there_is_a_workdir(monkeypatch, tmp_path):
    """With --follow, as both are started together; without, a mistyped workdir is refused."""
    from srpo_jax.judge.judge import judge

    asked = []
    monkeypatch.setattr(sys.modules[judge.__module__], "judge", lambda *a, **k: asked.append(a[1]))
    argv = ["judge", MINI, f"--workdir={tmp_path}/new"]
    assert cli.main(argv) == 2 and asked == []
    assert cli.main([*argv, "--follow"]) == 0 and asked == [f"{tmp_path}/new"]


def test_overrides_reach_the_config_in_both_spellings():
    """`--a=b` and `--a b` set the same typed value, and the last of two wins."""
    command = parse(
        "train",
        [MINI, "--config.train.steps=7", "--config.train.steps", "9", WORKDIR]
        + ["--config.arbiter.require_effective", "--config.train.freeze=('vision/.*',)"],
    )
    config = command.config()
    assert config.train.steps == 9 and config.arbiter.require_effective is True
    assert config.train.freeze == ("vision/.*",)
    assert command.config("dpo").objective.contrast == "dpo"


def test_profile_alone_means_a_few_steps():
    """`--profile` needs no value; with one, in either spelling, that one counts."""
    for given, meant in (
        (["--profile", WORKDIR], "10:13"),
        ([WORKDIR, "--profile"], "10:13"),
        ([WORKDIR], ""),
        (["--profile=2:4", WORKDIR], "2:4"),
        (["--profile", "2:4", WORKDIR], "2:4"),
    ):
        command = parse("train", [MINI, *given])
        assert (command.options["profile"], command.workdir) == (meant, "never_made")


@pytest.mark.parametrize(
    "error, code, said",
    [
        (UserError("a\nb"), 2, "srpo env: error: a b\n"),
        (RunFailure("a\nb"), 1, "srpo env: error: a b\n"),
        (KeyboardInterrupt(), 130, "srpo env: interrupted\n"),
        (OSError(28, "No space left on device", "x"), 1, "no space left on the disk: x"),
        (OSError(28, "No space left", "a", None, "b"), 1, "on the disk: b (No space left)"),
        (PermissionError(13, "Permission denied", "x"), 1, "no permission: x"),
        (IsADirectoryError(21, "Is a directory", "x"), 2, "srpo env: error: x (Is a directory)\n"),
        (FileExistsError(17, "File exists", "x"), 2, "srpo env: error: x (File exists)\n"),
        (NotADirectoryError(20, "Not a directory", "x"), 2, "error: x (Not a directory)\n"),
        (OSError(36, "File name too long", "x"), 2, "error: x (File name too long)\n"),
    ],
)
def test_failures_that_are_not_bugs_are_one_line(capsys, monkeypatch, error, code, said):
    """Interrupts, a full disk, missing rights and what starting again may cure print one line and
    have their own exit codes.
    """

    def fail(command):
        raise error

    monkeypatch.setattr(cli_verbs, "env", fail)
    got, out, err = run(capsys, "env")
    assert (got, out) == (code, "") and said in err and err.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
    """An unexpected exception is not disguised as a user's mistake."""

    def fail(command):
        raise ValueError("bug")

    monkeypatch.setattr(cli_verbs, "env", fail)
    with pytest.raises(ValueError, match="bug"):
        cli.main(["env"])


def test_env_prints_versions_and_no_variables(capsys, monkeypatch):
    """`srpo env` is safe to paste into a bug report."""
    monkeypatch.setenv("MY_API_KEY", "hunter2-secret")
    code, out, _ = run(capsys, "env")
    assert code == 0 and "hunter2-secret" not in out
    assert all(name in out for name in ("python", "jax", "flax", "transformers", "devices"))
