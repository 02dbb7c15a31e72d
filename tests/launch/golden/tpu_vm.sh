#!/bin/bash
set -euo pipefail

state() {
  gcloud compute tpus queued-resources describe mine --project=my-project --zone=us-east5-b '--format=value(state.state)' 2> /dev/null || true
}

# A preempted or failed request has to go before its name can be used again.
case "$(state)" in
  SUSPENDED | SUSPENDING | FAILED)
    gcloud compute tpus queued-resources delete mine --project=my-project --zone=us-east5-b --force --quiet ;;
esac
if [ -z "$(state)" ]; then
  gcloud compute tpus queued-resources create mine --project=my-project --zone=us-east5-b \
    --accelerator-type=v5p-128 \
    --runtime-version=v2-alpha-tpuv5 \
    --labels=app=srpo,run=mine \
    --node-id=mine \
    --scopes=https://www.googleapis.com/auth/cloud-platform \
    --spot
fi
until [ "$(state)" = ACTIVE ]; do
  case "$(state)" in
    SUSPENDED | FAILED) echo "the request ended as $(state)" >&2; exit 1 ;;
  esac
  echo "waiting for the TPU: $(state)"
  sleep "${POLL_SECONDS:-30}"
done

# On every host of every slice; the container goes on when this connection ends.
gcloud compute tpus queued-resources ssh mine --project=my-project --zone=us-east5-b --worker=all --node=all --command='set -euo pipefail
if ! command -v gcsfuse > /dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  apt=https://packages.cloud.google.com/apt
  curl -fsS $apt/doc/apt-key.gpg | sudo tee $key > /dev/null
  echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get update -q && sudo apt-get install -qy gcsfuse
fi
sudo mkdir -p /bucket
mountpoint -q /bucket || sudo gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 -o allow_other my-bucket /bucket
sudo gcloud auth configure-docker us-docker.pkg.dev --quiet
WANDB_API_KEY="$(gcloud secrets versions access latest --secret=wandb-key --project=my-project)"; export WANDB_API_KEY
sudo docker rm --force srpo > /dev/null 2>&1 || true
sudo --preserve-env=WANDB_API_KEY docker run --detach --name=srpo --privileged --user=0 --net=host --ipc=host --restart=on-failure:50 --stop-timeout=120 --volume=/bucket:/bucket --env=PYTHONUNBUFFERED=1 --env=SRPO_STOPPED_EXIT_CODE=75 --env=JAX_COORDINATOR_PORT=8482 --env=WANDB_API_KEY --entrypoint=srpo us-docker.pkg.dev/my-project/my-images/srpo:0.1.0 train --config=configs/pod.py --config.model.path=/bucket/model --config.arbiter.kind=prompted --workdir=/bucket/runs/mine'

# Look:  gcloud compute tpus queued-resources ssh mine --project=my-project --zone=us-east5-b --worker=0 --node=0 --command='sudo docker logs -f srpo'
# Stop:  gcloud compute tpus queued-resources ssh mine --project=my-project --zone=us-east5-b --worker=all --node=all --command='sudo docker stop srpo'
# End:   gcloud compute tpus queued-resources delete mine --project=my-project --zone=us-east5-b --force
