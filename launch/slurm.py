"""Slurm: a batch script. jax finds the processes and the coordinator in SLURM_* by itself.

At the time limit, or when the job is preempted, Slurm sends SIGTERM to the script, which hands it
to srun and so to every process; they save and stop, and the script puts the job back into the
queue. A failure is put back too, a mistake of the user is not.
"""

from __future__ import annotations

import shlex

from srpo_jax.launch.spec import STOPPED, USER_ERROR, Spec

# Processes of a training end each other, with one exit code, and a process that cannot hear is
# ended after so many seconds. With --kill-on-bad-exit=1 srun itself would kill the others at the
# first exit and return their 137, which hides a user's mistake: the job would be put back 50 times.
WAIT_SECONDS = 60


def render(spec: Spec) -> str:
    """The script, for sbatch."""
    options = [
        f"job-name={spec.name}",
        f"nodes={spec.nodes}",
        f"ntasks-per-node={spec.tasks_per_node}",
        *[f"gpus-per-node={spec.gpus_per_node}"] * bool(spec.gpus_per_node),
        *[f"partition={spec.partition}"] * bool(spec.partition),
        *[f"account={spec.account}"] * bool(spec.account),
        *[f"time={spec.time}"] * bool(spec.time),
        f"output={spec.name}-%j.log",
        "open-mode=append",
        "requeue",
        f"signal=B:TERM@{spec.grace_seconds}",
    ]
    header = "\n".join(f"#SBATCH --{option}" for option in options)
    exports = "\n".join(
        f"export {name}={shlex.quote(value)}" for name, value in spec.environment().items()
    )
    # Other verbs' processes end one by one: eval's go at once, but for process 0.
    wait = WAIT_SECONDS if spec.command[0] == "train" else 0  # 0: for as long as it takes
    return f"""\
#!/bin/bash
{header}

{exports}

step= signals=0
trap 'signals=$((signals + 1)); [ -z "$step" ] || kill -TERM "$step"' TERM
srun --kill-on-bad-exit=0 --wait={wait} --label {shlex.join(spec.argv())} &
step=$!
[ "$signals" -eq 0 ] || kill -TERM "$step"

seen=
while [ "$seen" != "$signals" ]; do # a signal ends the wait, not the step
  seen=$signals code=0
  wait "$step" || code=$?
done
echo "srun ended with $code after restart ${{SLURM_RESTART_COUNT:-0}}"

# {USER_ERROR}: a mistake, starting it again would not help; {STOPPED}: stopped early, saved.
if [ "$code" -ne 0 ] && [ "$code" -ne {USER_ERROR} ] &&
  [ "${{SLURM_RESTART_COUNT:-0}}" -lt {spec.max_restarts} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def submit_argv(spec: Spec) -> list[str]:
    """sbatch, reading the script from stdin."""
    return ["sbatch"]
