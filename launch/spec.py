"""What to run and where: one dataclass, checked before anything is printed or started.

An option that its target does not use is a mistake, not silently dropped; so is a mesh that does
not cover the chips, and a workdir that a restarted job would not find again.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from srpo_jax.buckets.objects import is_url
from srpo_jax.command.parse import parse
from srpo_jax.command.table import VERBS
from srpo_jax.command.verb import Command
from srpo_jax.config.load import find_config_file
from srpo_jax.distributed.accelerators import Slice, cloud_slice
from srpo_jax.distributed.xla_flags import libtpu_init_args
from srpo_jax.errors import UserError, one_line

TARGETS = ("local", "jobset", "tpu_vm", "xpk", "slurm")
BUCKET_MOUNT = "/bucket"  # where jobset and tpu_vm mount --bucket
COORDINATOR_PORT = 8482  # what jax takes on TPU
STOPPED = 75  # EX_TEMPFAIL: stopped before the end, its checkpoint is saved, start it again
USER_ERROR = 2  # never started again
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")  # 40: pods are <name>-slice-0-0-<5 letters>
# Names of things of a cluster: none of them needs more, and a shell or a YAML file obeys much else.
PLAIN = re.compile(r"[\w.:@/+][\w.,:@/+-]{0,511}", re.ASCII)
NAMES = (
    *("image", "project", "zone", "storage", "cluster", "service_account"),
    *("partition", "account", "time"),
)
PASTED = re.compile(r"""["'`$\\\x00-\x1f\x7f-\x9f\u2028\u2029]""")
CREDENTIAL_NAME = re.compile(r"(?i)(^|_)(api)?(key|token|secret|passw(or)?d|credentials?)(_|$)")
CREDENTIAL = re.compile(r"(hf_|sk-|ghp_|AIza|AKIA)[\w-]{12,}")


def _option(default: Any, help: str, *targets: str, needed: tuple[str, ...] = ()) -> Any:
    """A field. targets: those that use it (none: all); needed: those that cannot do without."""
    metadata = {"help": help, "targets": targets or TARGETS, "needed": needed}
    return dataclasses.field(default=default, metadata=metadata)


_TPU, _IMAGE = ("jobset", "tpu_vm", "xpk"), ("jobset", "tpu_vm", "xpk")
_CLUSTER = TARGETS[1:]


@dataclasses.dataclass(frozen=True)
class Spec:
    """command: the arguments of `srpo`. Errors: UserError, one line, at construction."""

    target: str
    command: tuple[str, ...]
    program: tuple[str, ...] = _option((), "what takes the command; default: srpo")
    env: tuple[str, ...] = _option((), "NAME=value for the program; may be repeated")
    restarts: int | None = _option(None, "how often to start it again; default 50, local 0")
    grace: int | None = _option(None, "seconds from SIGTERM to SIGKILL; default 120, local 10")

    processes: int = _option(1, "processes on this machine", "local")
    devices: int = _option(1, "virtual CPU devices of each process", "local")

    name: str = _option("", "of the job; a-z, 0-9 and -", *_CLUSTER, needed=_CLUSTER)
    topology: str = _option("", "TPU slice, as v6e:4x4 or v5p-8", *_TPU, needed=_TPU)
    slices: int = _option(1, "TPU slices; mesh.data is over them", *_TPU)
    image: str = _option("", "container image", *_IMAGE, needed=_IMAGE)
    bucket: str = _option(
        "",
        f"Cloud Storage bucket, mounted at {BUCKET_MOUNT}",
        "jobset",
        "tpu_vm",
        needed=("jobset", "tpu_vm"),
    )
    storage: str = _option("", "storage attached with xpk", "xpk", needed=("xpk",))
    project: str = _option("", "Google Cloud project", "tpu_vm", "xpk", needed=("tpu_vm", "xpk"))
    zone: str = _option("", "Google Cloud zone", "tpu_vm", "xpk", needed=("tpu_vm", "xpk"))
    cluster: str = _option(
        "",
        "xpk: the cluster; jobset: kubectl context, default the current one",
        "xpk",
        "jobset",
        needed=("xpk",),
    )
    namespace: str = _option("default", "Kubernetes namespace", "jobset")
    queue: str = _option("", "Kueue's local queue", "jobset")
    service_account: str = _option("", "that may use the bucket", "jobset", "tpu_vm")
    spot: bool = _option(False, "take preemptible capacity", *_TPU)
    secret: tuple[str, ...] = _option(
        (), "VARIABLE=NAME[/KEY] of a secret, never its value; may be repeated", "jobset", "tpu_vm"
    )
    xla_preset: str = _option("", "sets of XLA flags, see srpo_jax/distributed/xla_flags.py", *_TPU)

    nodes: int = _option(0, "nodes", "slurm", needed=("slurm",))
    gpus_per_node: int = _option(0, "GPUs of a node, one process each; 0: CPU", "slurm")
    partition: str = _option("", "partition", "slurm")
    account: str = _option("", "account", "slurm")
    time: str = _option("", "time limit, as 24:00:00", "slurm")

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise UserError(f"--target={self.target}: there is {', '.join(TARGETS)}")
        if not self.command:
            raise UserError(
                "no command; put it behind --, as in: -- train --config=... --workdir=..."
            )
        self._check_options()
        self._check_numbers()
        for item in self.env:
            _check_env(item, with_preset=bool(self.xla_preset))
        for item in self.secret:
            _check_secret(item, keys=self.target == "jobset")
        libtpu_init_args(self.xla_preset)
        self._check_command()
        if self.target != "local":
            self._check_job()

    def _check_options(self) -> None:
        for option in options():
            value, targets = getattr(self, option.name), option.metadata["targets"]
            if value != option.default and self.target not in targets:
                raise UserError(
                    f"--{option.name} means nothing for --target={self.target}; it is for "
                    f"{', '.join(targets)}"
                )
            if not value and self.target in option.metadata["needed"]:
                raise UserError(
                    f"--{option.name} is missing ({option.metadata['help']}); "
                    f"--target={self.target} needs it"
                )

    def _check_numbers(self) -> None:
        lowest = {
            "processes": 1,
            "devices": 1,
            "slices": 1,
            "nodes": 0,
            "gpus_per_node": 0,
            "restarts": 0,
            "grace": 0,
        }
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"--{name}={value}: at least {low} is needed")

    def _check_job(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UserError(
                f"--name={self.name}: 1 to 40 of a-z, 0-9 and -, from a letter to a letter or "
                "digit (a DNS-1123 label)"
            )
        for name in NAMES:
            if getattr(self, name) and not PLAIN.fullmatch(getattr(self, name)):
                raise UserError(
                    f"--{name}={one_line(getattr(self, name), 60)}: letters, digits and "
                    "_.,:@/+- only, no dash in front"
                )
        for name in ("namespace", "queue"):
            if getattr(self, name) and not NAME.fullmatch(getattr(self, name)):
                raise UserError(f"--{name}={getattr(self, name)}: no DNS-1123 label")
        if self.bucket and not re.fullmatch(r"[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]", self.bucket):
            raise UserError(f"--bucket={self.bucket}: no bucket's name; give it without gs://")
        if self.topology:
            cloud_slice(self.topology)
        if self.target == "xpk":
            self._check_what_xpk_pastes()
        verb = self.command[0]
        if self.program and verb not in VERBS:
            return  # another program's arguments
        command = parse(verb, self.command[1:])
        self._check_workdir(command.workdir)
        if verb == "train":
            _check_mesh(command, self.device_count, self.slices)

    def _check_command(self) -> None:
        """That `srpo` takes the command; another program may take any."""
        if not self.program and not {"-h", "--help", "--version"} & set(self.command):
            parse(self.command[0], self.command[1:])

    def _check_what_xpk_pastes(self) -> None:
        """xpk puts command and variables as text into YAML, and that into a shell."""
        texts = [f"--env={item}" for item in self.env] + [*self.program, *self.command]
        for text in texts:
            found = PASTED.search(text)
            if found:
                raise UserError(
                    f"{one_line(text, 60)}: xpk does not take {found[0]!r} as it is; use "
                    "--target=jobset, or a config file that holds the value"
                )

    def _check_workdir(self, workdir: str) -> None:
        if is_url(workdir):
            return
        inside = self.bucket and not workdir.startswith(f"{BUCKET_MOUNT}/")
        if workdir and (inside or not workdir.startswith("/")):
            mount = f"below {BUCKET_MOUNT}, where --bucket is, or gs://BUCKET/PATH"
            where = mount if self.bucket else "an absolute path, or gs://BUCKET/PATH"
            raise UserError(
                f"--workdir={workdir}: must be {where}, on storage that every host sees, or a "
                "restart finds nothing to go on from"
            )

    @property
    def slice(self) -> Slice:
        return cloud_slice(self.topology)

    @property
    def tasks_per_node(self) -> int:
        """slurm: jax takes one GPU per process, and all CPU devices of a node in one."""
        return max(1, self.gpus_per_node)

    @property
    def device_count(self) -> int:
        """jax devices of all processes."""
        if self.target == "local":
            return self.processes * self.devices
        if self.target == "slurm":
            return self.nodes * self.tasks_per_node
        return self.slice.devices * self.slices

    @property
    def max_restarts(self) -> int:
        default = 0 if self.target == "local" else 50
        return default if self.restarts is None else self.restarts

    @property
    def grace_seconds(self) -> int:
        default = 10 if self.target == "local" else 120
        return default if self.grace is None else self.grace

    def argv(self) -> list[str]:
        """What is executed on every host of a cluster, without a shell in between."""
        return [*(self.program or ("srpo",)), *self.command]

    def environment(self) -> dict[str, str]:
        """What a cluster sets for the program, secrets apart."""
        variables = {"PYTHONUNBUFFERED": "1", "SRPO_STOPPED_EXIT_CODE": str(STOPPED)}
        if self.topology:
            variables["JAX_COORDINATOR_PORT"] = str(COORDINATOR_PORT)
        if self.xla_preset:
            variables["LIBTPU_INIT_ARGS"] = libtpu_init_args(self.xla_preset)
        return variables | self.own_environment()

    def own_environment(self) -> dict[str, str]:
        """--env as a dict."""
        return dict(item.split("=", 1) for item in self.env)

    def secrets(self) -> list[tuple[str, str, str]]:
        """--secret as (variable, name of the secret, key in it; default the variable's name)."""
        found = []
        for item in self.secret:
            variable, _, name = item.partition("=")
            name, _, key = name.partition("/")
            found.append((variable, name, key or variable))
        return found


def options() -> list[dataclasses.Field]:
    """The fields of a Spec that are options of the command line."""
    return [field for field in dataclasses.fields(Spec) if "help" in field.metadata]


def _check_env(item: str, with_preset: bool) -> None:
    name, equals, value = item.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise UserError(f"--env={name}: write NAME=value")
    if CREDENTIAL_NAME.search(name) or CREDENTIAL.search(value):
        raise UserError(f"--env={name}=...: credentials are given by name, as --secret={name}=NAME")
    if name.startswith("SRPO_") or (name == "LIBTPU_INIT_ARGS" and with_preset):
        raise UserError(f"--env={name}: is set by launch itself")


def _check_secret(item: str, keys: bool) -> None:
    variable, equals, name = item.partition("=")
    pattern = r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?(/[-._\w]+)?" if keys else r"[-\w]{1,255}"
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", variable, re.ASCII):
        raise UserError("--secret: write VARIABLE=NAME of a secret that the cluster holds")
    if CREDENTIAL.search(name) or not re.fullmatch(pattern, name, re.ASCII):
        raise UserError(
            f"--secret={variable}=...: that is no secret's name; give the name, never the value"
        )


def _check_mesh(command: Command, devices: int, slices: int) -> None:
    """The mesh of the config and the overrides, as `srpo train` on that many devices would make."""
    sizes = {}
    for item in command.overrides:
        found = re.fullmatch(r"--?config\.mesh\.(data|fsdp|tensor)=(-?\d+)", item)
        if found:
            sizes[found[1]] = int(found[2])
    path, config = command.config_file.partition(":")[0], None
    if find_config_file(path):
        config = command.config()
        sizes = dataclasses.asdict(config.mesh)
    elif len(sizes) < 3:
        raise UserError(
            f"config file {path} is not here, so nothing can be checked against it; start from the "
            "folder it is in, or give --config.mesh.data, --config.mesh.fsdp and "
            "--config.mesh.tensor"
        )
    asked = " x ".join(f"{axis}={sizes[axis]}" for axis in ("data", "fsdp", "tensor"))
    if min(sizes["data"], sizes["tensor"]) < 1:
        raise UserError(f"mesh {asked}: only fsdp may be -1, the others are at least 1")
    if sizes["fsdp"] == -1:
        sizes["fsdp"] = devices // (sizes["data"] * sizes["tensor"])
    if math.prod(sizes.values()) != devices:
        raise UserError(f"mesh {asked} does not cover the {devices} devices of the job exactly")
    if sizes["data"] % slices:
        raise UserError(
            f"mesh {asked}: mesh.data must be a multiple of --slices={slices}, as fsdp and tensor "
            "stay inside a slice"
        )
    shards = sizes["data"] * sizes["fsdp"]
    if config is not None and config.pack.rows % (config.train.accumulate * shards):
        raise UserError(
            f"pack.rows={config.pack.rows} does not divide into train.accumulate="
            f"{config.train.accumulate} slices over the {shards} row shards (data x fsdp)"
        )
