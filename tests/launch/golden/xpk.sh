xpk workload create \
  --workload=mine \
  --cluster=my-cluster \
  --project=my-project \
  --zone=us-east5-b \
  --tpu-type=v5litepod-64 \
  --num-slices=2 \
  --docker-image=us-docker.pkg.dev/my-project/my-images/srpo:0.1.0 \
  --storage=my-storage \
  --max-restarts=50 \
  --restart-on-exit-codes=1,75 \
  --termination-grace-period-seconds=120 \
  --env=PYTHONUNBUFFERED=1 \
  --env=SRPO_STOPPED_EXIT_CODE=75 \
  --env=JAX_COORDINATOR_PORT=8482 \
  '--command=exec srpo train --config=configs/pod.py --config.model.path=/my-storage/model --config.arbiter.kind=prompted --workdir=/my-storage/runs/mine --config.mesh.data=2 --config.pack.rows=128'
