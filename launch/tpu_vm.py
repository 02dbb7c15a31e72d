"""TPU VMs through a queued resource: a shell script of gcloud commands.

The script can be started again at any time: what is there is used, what was preempted is asked for
again, and the training goes on at its last checkpoint. The commands and options are those of
gcloud 528; no TPU was at hand.
"""

from __future__ import annotations

import shlex

from srpo_jax.distributed.accelerators import CLOUD, accelerator_type
from srpo_jax.launch.spec import BUCKET_MOUNT, Spec

CONTAINER = "srpo"
# gcsfuse is not on the TPU VM images; these lines are those of its own installation page.
INSTALL_GCSFUSE = """\
if ! command -v gcsfuse > /dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  apt=https://packages.cloud.google.com/apt
  curl -fsS $apt/doc/apt-key.gpg | sudo tee $key > /dev/null
  echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get update -q && sudo apt-get install -qy gcsfuse
fi"""


def render(spec: Spec) -> str:
    """The script, for bash."""
    state = _resource(spec, "describe", "--format=value(state.state)")
    create = _resource(spec, "create") + "".join(
        f" \\\n    {shlex.quote(word)}" for word in _create(spec)
    )
    remote = shlex.quote(on_host(spec))
    delete = _resource(spec, "delete", "--force")
    ssh = _resource(spec, "ssh", "--worker=all", "--node=all")
    one = _resource(spec, "ssh", "--worker=0", "--node=0")
    return f"""\
#!/bin/bash
set -euo pipefail

state() {{
  {state} 2> /dev/null || true
}}

# A preempted or failed request has to go before its name can be used again.
case "$(state)" in
  SUSPENDED | SUSPENDING | FAILED)
    {delete} --quiet ;;
esac
if [ -z "$(state)" ]; then
  {create}
fi
until [ "$(state)" = ACTIVE ]; do
  case "$(state)" in
    SUSPENDED | FAILED) echo "the request ended as $(state)" >&2; exit 1 ;;
  esac
  echo "waiting for the TPU: $(state)"
  sleep "${{POLL_SECONDS:-30}}"
done

# On every host of every slice; the container goes on when this connection ends.
{ssh} --command={remote}

# Look:  {one} --command='sudo docker logs -f {CONTAINER}'
# Stop:  {ssh} --command='sudo docker stop {CONTAINER}'
# End:   {delete}
"""


def _resource(spec: Spec, what: str, *options: str) -> str:
    """A command about this job's queued resource, for a shell."""
    words = ["gcloud", "compute", "tpus", "queued-resources", what, spec.name]
    return shlex.join([*words, f"--project={spec.project}", f"--zone={spec.zone}", *options])


def submit_argv(spec: Spec) -> list[str]:
    """bash with the script as an argument: gcloud's ssh would eat it on stdin."""
    return ["bash", "-c", render(spec)]


def _create(spec: Spec) -> list[str]:
    kind = CLOUD[spec.slice.chip.name]
    words = [
        f"--accelerator-type={accelerator_type(spec.slice)}",
        f"--runtime-version={kind.runtime}",
        f"--labels=app=srpo,run={spec.name}",
    ]
    if spec.slices == 1:
        words.append(f"--node-id={spec.name}")
    else:
        words += [f"--node-count={spec.slices}", f"--node-prefix={spec.name}"]
    if spec.service_account:
        words.append(f"--service-account={spec.service_account}")
    words.append("--scopes=https://www.googleapis.com/auth/cloud-platform")  # bucket, secrets
    return words + ["--spot"] * spec.spot


def on_host(spec: Spec) -> str:
    """What every host runs: mount the bucket, fetch secrets by name, start the container.

    Secrets pass through the environment, so their values are on no command line. Docker starts the
    program without a shell, sends it SIGTERM when the host goes down, and starts it again when it
    fails.
    """
    registry = spec.image.partition("/")[0]
    lines = ["set -euo pipefail", INSTALL_GCSFUSE]
    lines += [
        f"sudo mkdir -p {BUCKET_MOUNT}",
        f"mountpoint -q {BUCKET_MOUNT} || "
        "sudo gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 -o allow_other "
        f"{spec.bucket} {BUCKET_MOUNT}",
    ]
    if registry.endswith((".pkg.dev", "gcr.io")):
        lines.append(f"sudo gcloud auth configure-docker {shlex.quote(registry)} --quiet")
    names = [variable for variable, _, _ in spec.secrets()]
    for variable, name, _ in spec.secrets():
        get = "gcloud secrets versions access latest " + shlex.join(
            [f"--secret={name}", f"--project={spec.project}"]
        )
        lines.append(f'{variable}="$({get})"; export {variable}')
    lines.append(f"sudo docker rm --force {CONTAINER} > /dev/null 2>&1 || true")
    keep = [f"--preserve-env={','.join(names)}"] if names else []
    run = [
        "sudo",
        *keep,
        "docker",
        "run",
        "--detach",
        f"--name={CONTAINER}",
        "--privileged",
        "--user=0",
        "--net=host",
        "--ipc=host",
        f"--restart=on-failure:{spec.max_restarts}",
        f"--stop-timeout={spec.grace_seconds}",
        f"--volume={BUCKET_MOUNT}:{BUCKET_MOUNT}",
        *(f"--env={name}={value}" for name, value in spec.environment().items()),
        *(f"--env={name}" for name in names),
        "--entrypoint=" + spec.argv()[0],
        spec.image,
        *spec.argv()[1:],
    ]
    return "\n".join([*lines, shlex.join(run)])
