"""What stands in an option of launch arrives at the program as it is, or is refused: the rendered
scripts are run, with small programs in the place of gcloud, docker, srun and the like, which write
down what they are called with.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

import pytest
import yaml

from srpo_jax.errors import UserError
from srpo_jax.launch.__main__ import main, parse, render
from srpo_jax.launch.spec import Spec

HOSTILE = (
    "$(touch PWNED)",
    "`touch PWNED`",
    "'; touch PWNED; '",
    '"; touch PWNED; "',
    "& touch PWNED &",
    "| touch PWNED",
    "x\ntouch PWNED\n#SBATCH --uid=0",
    "${HOME}$HOME$$HOME\\$HOME",
    "$(HOME) $$(HOME) $$$(A) $",
    "{X}{}{0}%s%(x)s",
    "* ~ ? [a] !!",
    "a: b # c",
    "",
    "\u2028\x85é",
)
RECORD = """#!/bin/bash
{ printf '%s\\0' "${0##*/}" "$@"; printf '%s\\0' "A=${A-}" END; } >> "$LOG"
"""
ON_HOST = ("sudo", "docker", "gcsfuse", "mountpoint", "curl", "tee", "lsb_release")
JOB = {"name": "mine", "image": "us-docker.pkg.dev/p/i/srpo:1", "topology": "v5p-128"}
TARGETS = {
    "local": {},
    "jobset": {**JOB, "bucket": "my-bucket"},
    "tpu_vm": {**JOB, "bucket": "my-bucket", "project": "p", "zone": "z"},
    "xpk": {**JOB, "cluster": "c", "storage": "s", "project": "p", "zone": "z"},
    "slurm": {"name": "mine", "nodes": 2},
}
WORDS = ("--text", *HOSTILE, "--last")


def spec_of(target: str, *words: str, a: str) -> Spec:
    return Spec(target, words, program=("prog",), env=(f"A={a}",), **TARGETS[target])


def run(script: str, folder: pathlib.Path, *names: str) -> list[list[str]]:
    """What the stubs of these names, and `prog`, were called with, and their variable A."""
    for name in ("prog", *names):
        (folder / name).write_text(RECORD)
        (folder / name).chmod(0o755)
    here, log = folder / "here", folder / "log"
    here.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    env = {"PATH": f"{folder}:/usr/bin:/bin", "LOG": str(log), "HOME": "/home/of-me"}
    subprocess.run(
        ["bash", "-c", script], env=env, cwd=here, capture_output=True, timeout=60, check=False
    )
    assert list(here.iterdir()) == [], "something was executed"
    calls: list[list[str]] = [[]]
    for word in log.read_text().split("\0")[:-1]:
        calls[-1].append(word)
        if word == "END":
            calls.append([])
    return [call[:-1] for call in calls[:-1]]


def kubernetes(text: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of a command's word: its rules are in
    https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables
    """

    def value(found: re.Match) -> str:
        if found[0] == "$$":
            return "$"
        return variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", value, text)


@pytest.mark.parametrize("a", HOSTILE)
def test_a_jobset_starts_exactly_these_words(a):
    """Kubernetes expands $(NAME) in both; what it makes of them is what was typed."""
    spec = spec_of("jobset", *WORDS, a=a)
    job = yaml.safe_load(render(spec))["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    known: dict[str, str] = {"HOME": "/root"}
    for entry in container["env"]:
        known[entry["name"]] = kubernetes(entry["value"], known)
    assert known["A"] == a
    assert [kubernetes(word, known) for word in container["command"]] == ["prog", *WORDS]


@pytest.mark.parametrize("a", HOSTILE)
def test_slurm_starts_exactly_these_words(tmp_path, a):
    """And what stands in a variable is no line for sbatch."""
    script = render(spec_of("slurm", *WORDS, a=a))
    (call,) = run(script, tmp_path, "srun", "scontrol")
    assert call[call.index("prog") :] == ["prog", *WORDS, f"A={a}"]
    header = script[: script.index("\nexport")]
    assert "uid" not in header, "sbatch reads options up to the first command"


@pytest.mark.parametrize("a", HOSTILE)
def test_a_shell_starts_exactly_these_words_here(tmp_path, a):
    """What --target=local prints."""
    (call,) = run(render(spec_of("local", *WORDS, a=a)), tmp_path)
    assert call == ["prog", *WORDS, f"A={a}"]


@pytest.mark.parametrize("a", HOSTILE)
def test_a_tpu_vm_starts_exactly_these_words(tmp_path, a):
    """Through two shells: this one, and that of the host."""
    spec = spec_of("tpu_vm", *WORDS, a=a)
    spec = Spec(**{**vars(spec), "secret": ("KEY=wandb-key",)})
    script = render(spec).replace('until [ "$(state)" = ACTIVE ]', "until true")
    calls = run(script, tmp_path, "gcloud")
    (ssh,) = [call for call in calls if call[4] == "ssh"]
    remote = next(w.partition("=")[2] for w in ssh if w.startswith("--command="))
    calls = run(remote, tmp_path, "gcloud", *ON_HOST)
    (docker,) = [call for call in calls if call[1:2] and "docker" in call and "run" in call]
    assert f"--env=A={a}" in docker and "--entrypoint=prog" in docker
    at = docker.index(spec.image)
    assert docker[at + 1 : -1] == list(WORDS)


@pytest.mark.parametrize("a", HOSTILE)
def test_xpk_gets_these_words_or_none(tmp_path, a):
    """xpk pastes them into YAML and a shell, which nobody can quote for: all that is no plain text
    there is refused.
    """
    try:
        spec = spec_of("xpk", "--text", a, a=a)
    except UserError as error:
        assert "xpk does not take" in str(error) and "\n" not in str(error)
        assert set(a) & set("\"'`$\\\n\u2028"), a
        return
    (call,) = run(render(spec), tmp_path, "xpk")
    (command,) = [w.partition("=")[2] for w in call if w.startswith("--command=")]
    assert f"--env=A={a}" in call
    pod = yaml.safe_load(f"command:\n- bash\n- -c\n- |\n  ({command}) & wait\n")["command"]
    (call,) = run(kubernetes(pod[2], {"HOME": "/root"}), tmp_path)
    assert call[:-1] == ["prog", "--text", a]


@pytest.mark.parametrize(
    "name", ["project", "zone", "image", "storage", "cluster", "service_account", "account", "time"]
)
@pytest.mark.parametrize("target", list(TARGETS)[1:])
def test_names_are_names(target, name):
    """What a shell, a YAML file or Python's format would obey is refused in one line, whichever
    option it stands in; what real names hold is not.
    """
    options = {**TARGETS[target], name: ""}
    plain = "us-docker.pkg.dev/my_p/i/srpo@sha256:0a,b+c"
    try:
        Spec(target, ("x",), program=("prog",), **{**options, name: plain})
    except UserError as error:
        assert "means nothing for" in str(error)
        return
    for text in (*HOSTILE[:12], "$(id)", ";id", "${X}", "{X}", "-x", "a b", "\u0661"):
        with pytest.raises(UserError, match=f"--{name}=.* only, no dash in front") as error:
            Spec(target, ("x",), program=("prog",), **{**options, name: text})
        assert "\n" not in str(error.value)


def test_a_script_quotes_what_the_checks_might_let_through(tmp_path, monkeypatch):
    """The second line of defence: without the checks gcloud still gets what was typed."""
    monkeypatch.setattr(Spec, "__post_init__", lambda self: None)
    text = "$(touch${IFS}PWNED);touch${IFS}PWNED;'{X}"
    changed = {"project": text, "zone": text, "service_account": text}
    changed["image"] = f"{text}.pkg.dev/i"
    spec = Spec("tpu_vm", ("x",), program=("prog",), secret=("K=n",), **TARGETS["tpu_vm"] | changed)
    script = render(spec).replace('until [ "$(state)" = ACTIVE ]', "until true")
    calls = [call for call in run(script, tmp_path, "gcloud") if call[0] == "gcloud"]
    assert {call[4] for call in calls} == {"describe", "create", "ssh"}
    assert all(f"--project={text}" in call and f"--zone={text}" in call for call in calls)
    assert any(f"--service-account={text}" in call for call in calls)
    (ssh,) = [call for call in calls if call[4] == "ssh"]
    remote = next(w.partition("=")[2] for w in ssh if w.startswith("--command="))
    calls = run(remote, tmp_path, "gcloud", *ON_HOST)
    assert any(f"{text}.pkg.dev" in call for call in calls)
    assert any(f"--project={text}" in call for call in calls)


def test_what_is_typed_is_what_is_checked(tmp_path):
    """On the command line itself, through `srpo launch`."""
    assert shutil.which("bash")
    argv = ["--target=tpu_vm", *(f"--{k}={v}" for k, v in TARGETS["tpu_vm"].items())]
    argv = [word for word in argv if not word.startswith("--zone")]
    with pytest.raises(UserError, match="--zone="):
        parse([*argv, "--zone=$(touch PWNED)", "--program=prog", "--", "x"])


def test_a_refusal_is_one_line_whatever_is_refused(capsys):
    """A line's end or a terminal's command in a value forges no second line."""
    name = "a\nsrpo launch: all is well\x1b[2K"
    assert main(["--target=slurm", f"--name={name}", "--nodes=1", "--", "env"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err[:-1].isprintable()
