"""The launcher's spec and what it prints for each target.

Run as a script with --update, this file writes the golden files and the examples in docs/launch/.
"""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import signal
import stat
import subprocess
import sys

import pytest
import yaml

from srpo_jax.distributed import stop
from srpo_jax.distributed.accelerators import accelerator_type, cloud_slice, machine_type
from srpo_jax.launch import tpu_vm
from srpo_jax.launch.__main__ import main, parse, render
from tests.support import ROOT

GOLDEN = ROOT / "tests" / "launch" / "golden"
TRAIN = [
    "--",
    "train",
    "--config=configs/pod.py",
    "--config.model.path=/bucket/model",
    "--config.arbiter.kind=prompted",
    "--workdir=/bucket/runs/mine",
]
TWO_SLICES = [*TRAIN, "--config.mesh.data=2", "--config.pack.rows=128"]
JOB = ["--name=mine", "--image=us-docker.pkg.dev/my-project/my-images/srpo:0.1.0"]
CLOUD = ["--project=my-project", "--zone=us-east5-b"]
CASES = {
    "local.sh": [
        "--processes=2",
        "--devices=4",
        "--",
        "train",
        "--config=configs/ssui_mini.py",
        "--workdir=runs/mini",
    ],
    "jobset.yaml": [
        "--target=jobset",
        *JOB,
        "--topology=v6e:8x8",
        "--slices=2",
        "--spot",
        "--bucket=my-bucket",
        "--service_account=trainer",
        "--secret=WANDB_API_KEY=wandb/key",
        "--xla_preset=collectives,slices",
        *TWO_SLICES,
    ],
    "tpu_vm.sh": [
        "--target=tpu_vm",
        *JOB,
        *CLOUD,
        "--topology=v5p-128",
        "--bucket=my-bucket",
        "--spot",
        "--secret=WANDB_API_KEY=wandb-key",
        *TRAIN,
    ],
    "xpk.sh": [
        "--target=xpk",
        *JOB,
        *CLOUD,
        "--cluster=my-cluster",
        "--topology=v5litepod-64",
        "--slices=2",
        "--storage=my-storage",
        *(word.replace("/bucket/", "/my-storage/") for word in TWO_SLICES),
    ],
    "slurm.sh": [
        "--target=slurm",
        "--name=mine",
        "--nodes=8",
        "--gpus_per_node=8",
        "--partition=gpu",
        "--time=24:00:00",
        *TRAIN,
    ],
}


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def text_of(argv: list[str]) -> str:
    return render(parse(argv)[0]).replace(sys.executable, "python").rstrip("\n") + "\n"


def with_(argv: list[str], **changes: str | None) -> list[str]:
    """The command line with some of launch's own options changed, added or (None) left out."""
    at = argv.index("--")
    own = [word for word in argv[:at] if word[2:].split("=")[0] not in changes]
    return own + [f"--{k}={v}" for k, v in changes.items() if v is not None] + argv[at:]


@pytest.mark.parametrize("case", CASES)
def test_what_is_printed_is_the_golden_file(case):
    """Any change of what would be run is seen in a review; the pages show exactly that text."""
    hint = "python tests/launch/test_targets.py --update"
    assert text_of(CASES[case]) == (GOLDEN / case).read_text(), hint
    page = (ROOT / "docs" / "launch" / case).with_suffix(".md")
    assert page.read_text() == with_example(page.read_text(), case), hint


@pytest.mark.parametrize("case", [name for name in CASES if name != "local.sh"])
@pytest.mark.parametrize("verb", ["explore", "eval"])
def test_what_is_trained_can_be_sampled_on_the_same_hosts(case, verb):
    """The training mesh of configs/pod.py is of all chips; explore and eval do not ask it."""
    argv = CASES[case]
    at = argv.index("--")
    words = [*argv[: at + 1], verb, *argv[at + 2 :]]
    assert verb in text_of(words) and text_of(argv) != text_of(words)


@pytest.mark.parametrize("case", ["tpu_vm.sh", "slurm.sh", "xpk.sh", "local.sh"])
def test_scripts_are_bash(case):
    """bash parses them, and also what a TPU VM runs inside a quoted argument."""
    subprocess.run(["bash", "-n"], input=text_of(CASES[case]), text=True, check=True)
    if case == "tpu_vm.sh":
        remote = tpu_vm.on_host(parse(CASES[case])[0])
        subprocess.run(["bash", "-n"], input=remote, text=True, check=True)
        assert shlex.quote(remote) in text_of(CASES[case])


# (topology, accelerator type, hosts, chips of a host, machine type, node label): from Google's
# pages "Plan TPUs in GKE" and xpk's table; v5p's number counts cores, two of a chip.
SIZES = [
    ("v5e:1x1", "v5litepod-1", 1, 1, "ct5lp-hightpu-1t", "tpu-v5-lite-podslice"),
    ("v5e:2x2", "v5litepod-4", 1, 4, "ct5lp-hightpu-4t", "tpu-v5-lite-podslice"),
    ("v5e:2x4", "v5litepod-8", 1, 8, "ct5lp-hightpu-8t", "tpu-v5-lite-podslice"),
    ("v5e:4x4", "v5litepod-16", 4, 4, "ct5lp-hightpu-4t", "tpu-v5-lite-podslice"),
    ("v5e:16x16", "v5litepod-256", 64, 4, "ct5lp-hightpu-4t", "tpu-v5-lite-podslice"),
    ("v5p:2x2x1", "v5p-8", 1, 4, "ct5p-hightpu-4t", "tpu-v5p-slice"),
    ("v5p:2x2x4", "v5p-32", 4, 4, "ct5p-hightpu-4t", "tpu-v5p-slice"),
    ("v5p:4x4x4", "v5p-128", 16, 4, "ct5p-hightpu-4t", "tpu-v5p-slice"),
    ("v6e:1x1", "v6e-1", 1, 1, "ct6e-standard-1t", "tpu-v6e-slice"),
    ("v6e:2x4", "v6e-8", 1, 8, "ct6e-standard-8t", "tpu-v6e-slice"),
    ("v6e:4x8", "v6e-32", 8, 4, "ct6e-standard-4t", "tpu-v6e-slice"),
]


@pytest.mark.parametrize("topology, accelerator, hosts, chips, machine, label", SIZES)
def test_a_jobset_asks_for_what_the_slice_is(topology, accelerator, hosts, chips, machine, label):
    """One pod per host, each with the chips of a host, on nodes of that kind and shape."""
    assert cloud_slice(accelerator) == cloud_slice(topology)
    assert accelerator_type(cloud_slice(topology)) == accelerator
    assert machine_type(cloud_slice(topology)) == machine
    fsdp, slices = hosts * chips, 1 if hosts == 1 else 3
    argv = with_(CASES["jobset.yaml"], topology=accelerator, slices=str(slices), grace="90")
    argv += [
        f"--config.mesh.data={slices}",
        f"--config.mesh.fsdp={fsdp}",
        f"--config.pack.rows={slices * fsdp}",
    ]
    text = text_of(argv)
    assert f"{hosts} x {machine}" in text.splitlines()[0]
    found = yaml.safe_load(text)
    replicated = found["spec"]["replicatedJobs"][0]
    job, pod = replicated["template"]["spec"], replicated["template"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert replicated["replicas"] == slices
    assert job["parallelism"] == job["completions"] == hosts and job["backoffLimit"] == 0
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == label
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology.split(":")[1]
    assert pod["terminationGracePeriodSeconds"] == 90
    assert pod.get("hostNetwork", False) == (slices > 1)


def test_a_jobset_ends_well():
    """SIGTERM reaches the program, a stopped run is started again, a mistake is not."""
    found = yaml.safe_load(text_of(CASES["jobset.yaml"]))
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    assert container["command"][:2] == ["srpo", "train"] and "args" not in container
    variables = {entry["name"]: entry for entry in container["env"]}
    assert variables["SRPO_STOPPED_EXIT_CODE"]["value"] == "75"
    secret = {"secretKeyRef": {"name": "wandb", "key": "key"}}
    assert variables["WANDB_API_KEY"] == {"name": "WANDB_API_KEY", "valueFrom": secret}
    assert {"containerPort": 8482} in container["ports"]
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 50
    assert found["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"/dev/shm", "/bucket"}


def test_a_stopped_training_ends_with_the_code_that_was_asked_for(monkeypatch):
    """0 would tell a cluster that the training is finished."""
    for value, code in ((None, 0), ("75", 75)):
        monkeypatch.delenv("SRPO_STOPPED_EXIT_CODE", raising=False)
        if value:
            monkeypatch.setenv("SRPO_STOPPED_EXIT_CODE", value)
        with pytest.raises(SystemExit) as ended:
            stop.leave(signal.SIGTERM, 3, 10)
        assert ended.value.code == code


JOBSET, XPK = CASES["jobset.yaml"], CASES["xpk.sh"]
MISTAKES = [
    ([], "no command"),
    (["--", "trane"], "unknown verb 'trane'; did you mean train?"),
    (["--submit", "--processes=2", "--", "trane"], "did you mean train?"),
    (["--", "checkpoints", "chekc"], "unknown verb 'checkpoints chekc'"),
    (["--", "train", "--config=c.py", "--workdri=d"], "did you mean --workdir?"),
    (["--program='", "--", "env"], "--program=': No closing quotation"),
    (["train"], "stands behind --"),
    (["--devices=0", "--", "env"], "at least 1"),
    (["--devices=x", "--", "env"], "invalid int"),
    (["--target=moon", "--", "env"], "there is local"),
    (["--dev=2", "--", "env"], "unknown argument"),
    (["--zone=z", "--", "env"], "--zone means nothing for --target=local"),
    (with_(JOBSET, topology="v6e:3x3"), "no v6e slice of this shape"),
    (with_(JOBSET, topology="v5p-9"), "no such TPU"),
    (with_(JOBSET, topology="tpu7x:4x4x4"), "launch knows v5e, v5p, v6e only"),
    (with_(JOBSET, name="My_Run"), "DNS-1123"),
    (with_(JOBSET, name="a" * 41), "DNS-1123"),
    (with_(JOBSET, image=None), "--image is missing"),
    (with_(JOBSET, bucket=None), "--bucket is missing"),
    (with_(JOBSET, bucket="gs://b"), "without gs://"),
    (with_(JOBSET, partition="p"), "--partition means nothing"),
    (with_(CASES["tpu_vm.sh"], zone=None), "--zone is missing"),
    (with_(CASES["tpu_vm.sh"], project=None), "--project is missing"),
    (with_(XPK, cluster=None), "--cluster is missing"),
    (with_(XPK, secret="A=b"), "--secret means nothing for --target=xpk"),
    (with_(XPK, topology="v5e:2x2", slices="1"), "does not cover the 4 devices"),
    (
        [
            *with_(XPK, topology="v5e:2x2", slices="1"),
            "--config.mesh.data=1",
            "--config.mesh.fsdp=4",
        ],
        "xpk has v5e from 2x4",
    ),
    (with_(JOBSET, slices="3"), "does not cover the 192 devices"),
    ([*JOBSET, "--config.mesh.data=1", "--config.mesh.fsdp=128"], "multiple of --slices=2"),
    ([*JOBSET, "--config.pack.rows=64"], "pack.rows=64 does not divide"),
    ([*JOBSET, "--workdir=runs/mine"], "must be below /bucket"),
    ([*CASES["slurm.sh"], "--workdir=runs/mine"], "must be an absolute path"),
    ([*JOBSET, "--config.train.stepz=3"], "did you mean"),
    ([*JOBSET[: JOBSET.index("--")], "--", "trian"], "unknown verb"),
    ([word.replace("configs/pod", "/bucket/my") for word in JOBSET], "/bucket/my.py is not here"),
    (with_(JOBSET, env="HF_TOKEN=abc"), "credentials are given by name"),
    (with_(JOBSET, env="NAME=hf_abcdefghijklmnop"), "credentials are given by name"),
    (with_(JOBSET, env="nothing"), "write NAME=value"),
    (with_(JOBSET, env="LIBTPU_INIT_ARGS=--a=b"), "is set by launch itself"),
    (with_(JOBSET, secret="HF_TOKEN=hf_abcdefghijklmnop"), "never the value"),
    (with_(JOBSET, xla_preset="fast"), "there is collectives"),
    (with_(JOBSET, restarts="-1"), "at least 0"),
]


@pytest.mark.parametrize("argv, said", MISTAKES)
def test_mistakes_are_one_line(capsys, monkeypatch, argv, said):
    """What cannot run is refused in one line with exit code 2, and no secret is repeated."""
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("started something"))
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
    assert "abcdefghijklmnop" not in err


def test_help_and_programs_of_ones_own_pass(capsys):
    """What srpo itself answers, and what another program is to read, is printed as it is."""
    for argv in (["--", "train", "--help"], ["--", "--version"], ["--program=mine", "--", "trane"]):
        assert main(argv) == 0
        assert capsys.readouterr().out.rstrip().endswith(" ".join(argv[argv.index("--") + 1 :]))


@pytest.mark.parametrize(
    "case, tool",
    [
        ("jobset.yaml", "kubectl"),
        ("tpu_vm.sh", "gcloud"),
        ("xpk.sh", "xpk"),
        ("slurm.sh", "sbatch"),
    ],
)
def test_only_submit_starts_something(case, tool, capsys, monkeypatch, tmp_path):
    """Printed by default; --submit hands the printed text to the tool, which has to be there."""
    started = []

    def fake(argv, input, text):
        started.append((argv, input))
        return subprocess.CompletedProcess(argv, 5)

    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(CASES[case]) == 0
    out, err = capsys.readouterr()
    assert out == text_of(CASES[case]) and "nothing was started" in err and not started
    assert main(["--submit", *CASES[case]]) == 2 and not started
    assert f"{tool} is not on PATH" in capsys.readouterr().err
    stub(tmp_path, tool, "exit 0")
    assert main(["--submit", *CASES[case]]) == 5  # the tool's own exit code
    ((argv, text),) = started
    assert argv[0] == ("bash" if tool == "gcloud" else tool)
    if tool in ("kubectl", "sbatch"):
        assert text == out
    else:
        assert text is None and "runs/mine" in argv[-1]


def stub(folder: pathlib.Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run_script(script: str, folder: pathlib.Path, **variables: str) -> tuple[int, str]:
    """(exit code, what the stubs in `folder` wrote down)."""
    env = {"PATH": f"{folder}:/usr/bin:/bin", "LOG": str(folder / "log"), **variables}
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, timeout=60
    )
    log = folder / "log"
    return done.returncode, log.read_text() if log.exists() else done.stderr


@pytest.mark.parametrize(
    "code, restarts, requeued",
    [
        (75, 0, True),
        (134, 3, True),
        (134, 50, False),
        (2, 0, False),
        (0, 0, False),
    ],
)
def test_the_batch_script_goes_on_after_a_stop(tmp_path, code, restarts, requeued):
    """Slurm's SIGTERM reaches srun, the script waits for it, and puts the job back."""
    stub(
        tmp_path,
        "srun",
        f"trap 'sleep 0.2; echo told >> $LOG; exit {code}' TERM\n"
        "kill -TERM $PPID\nfor i in $(seq 200); do sleep 0.05; done",
    )
    stub(tmp_path, "scontrol", 'echo "scontrol $*" >> $LOG')
    found, log = run_script(
        text_of(CASES["slurm.sh"]), tmp_path, SLURM_JOB_ID="9", SLURM_RESTART_COUNT=str(restarts)
    )
    assert found == code
    assert log == "told\n" + "scontrol requeue 9\n" * requeued


def test_srun_lets_the_processes_agree_on_the_exit_code():
    """srun that kills at the first bad exit returns 137, and a mistake would be put back for ever.
    Training ends together; workers and eval end one by one, and nobody is killed for that.
    """
    train = text_of(CASES["slurm.sh"])
    assert "srun --kill-on-bad-exit=0 --wait=60 --label srpo train" in train
    argv = CASES["slurm.sh"]
    others = [*argv[: argv.index("--") + 1], "eval", "--config=c.py", "--workdir=/w"]
    assert "srun --kill-on-bad-exit=0 --wait=0 --label srpo eval" in text_of(others)


@pytest.mark.parametrize(
    "before, calls",
    [
        ("", ["create", "ssh"]),
        ("ACTIVE", ["ssh"]),
        ("SUSPENDED", ["delete", "create", "ssh"]),
    ],
)
def test_the_tpu_vm_script_can_be_started_again(tmp_path, before, calls):
    """What is there is used, what was preempted is deleted and asked for again."""
    (tmp_path / "state").write_text(before)
    stub(
        tmp_path,
        "gcloud",
        """
state=$(dirname $LOG)/state
[ "$4" = describe ] || echo "$4" >> $LOG
case "$4" in
  describe) cat $state; [ "$(cat $state)" != PROVISIONING ] || printf ACTIVE > $state ;;
  create) printf PROVISIONING > $state ;;
  delete) printf '' > $state ;;
esac""",
    )
    code, log = run_script(text_of(CASES["tpu_vm.sh"]), tmp_path, POLL_SECONDS="0")
    assert code == 0 and log.split() == calls


def test_secrets_are_names_on_a_tpu_vm():
    """The host fetches the value; it is on no command line."""
    remote = tpu_vm.on_host(parse(CASES["tpu_vm.sh"])[0])
    assert "secrets versions access latest --secret=wandb-key" in remote
    last = shlex.split(remote.splitlines()[-1])
    assert "--env=WANDB_API_KEY" in last and "--entrypoint=srpo" in last


def test_the_dockerfile_starts_the_program_without_a_shell():
    """SIGTERM goes to process 1, which must be the program."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert 'ENTRYPOINT ["srpo"]' in lines
    assert any(line.startswith("USER ") and "root" not in line for line in lines)


def with_example(page: str, case: str) -> str:
    """The page with its example, behind the marker, as launch prints it today."""
    command = "srpo launch"
    for word in map(shlex.quote, CASES[case]):
        fits = word != "--" and len(command.rpartition("\n")[2]) + len(word) < 95
        command += (" " if fits else " \\\n    ") + word
    kind = "yaml" if case.endswith(".yaml") else "bash"
    block = f"```bash\n{command}\n```\n\nprints\n\n```{kind}\n{text_of(CASES[case])}```\n"
    marker = f"<!-- example: {case} -->\n"
    assert marker in page, f"the page has no line {marker!r}"
    return re.sub(
        re.escape(marker) + r"(```.*?```\n\nprints\n\n```.*?```\n)?",
        lambda _: marker + block,
        page,
        flags=re.DOTALL,
    )


def update() -> None:
    os.chdir(ROOT)
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        (GOLDEN / case).write_text(text_of(CASES[case]))
        page = (ROOT / "docs" / "launch" / case).with_suffix(".md")
        page.write_text(with_example(page.read_text(), case))


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python tests/launch/test_targets.py --update")
    update()
