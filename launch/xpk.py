"""xpk: the command that makes a JobSet like jobset.py's on a cluster that xpk set up.

Options are those of xpk 367c838. It starts the program in `bash -c '(COMMAND) & ...'` and passes
SIGTERM to that subshell, so the command begins with exec: the subshell becomes the program.
"""

from __future__ import annotations

import shlex

from srpo_jax.distributed.accelerators import accelerator_type
from srpo_jax.errors import UserError
from srpo_jax.launch.spec import STOPPED, Spec

# xpk restarts on 42 and 127 to 255 by itself; 1 is a failure that is not the user's.
RESTART_ON = f"1,{STOPPED}"


def submit_argv(spec: Spec) -> list[str]:
    """The xpk command. Errors: UserError for slices that xpk does not know."""
    if spec.slice.chip.name == "v5e" and spec.slice.chips < 8:
        raise UserError(
            f"--topology={spec.topology}: xpk has v5e from 2x4; use --target=jobset or tpu_vm"
        )
    return [
        "xpk",
        "workload",
        "create",
        f"--workload={spec.name}",
        f"--cluster={spec.cluster}",
        f"--project={spec.project}",
        f"--zone={spec.zone}",
        f"--tpu-type={accelerator_type(spec.slice)}",
        f"--num-slices={spec.slices}",
        f"--docker-image={spec.image}",
        f"--storage={spec.storage}",
        f"--max-restarts={spec.max_restarts}",
        f"--restart-on-exit-codes={RESTART_ON}",
        f"--termination-grace-period-seconds={spec.grace_seconds}",
        *["--spot"] * spec.spot,
        *(f"--env={name}={value}" for name, value in spec.environment().items()),
        f"--command=exec {shlex.join(spec.argv())}",
    ]


def render(spec: Spec) -> str:
    """The command for a shell, an option a line."""
    words = [shlex.quote(word) for word in submit_argv(spec)]
    return " ".join(words[:3]) + "".join(f" \\\n  {word}" for word in words[3:]) + "\n"
