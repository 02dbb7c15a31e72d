#!/bin/bash
#SBATCH --job-name=mine
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --partition=gpu
#SBATCH --time=24:00:00
#SBATCH --output=mine-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120

export PYTHONUNBUFFERED=1
export SRPO_STOPPED_EXIT_CODE=75

step= signals=0
trap 'signals=$((signals + 1)); [ -z "$step" ] || kill -TERM "$step"' TERM
srun --kill-on-bad-exit=0 --wait=60 --label srpo train --config=configs/pod.py --config.model.path=/bucket/model --config.arbiter.kind=prompted --workdir=/bucket/runs/mine &
step=$!
[ "$signals" -eq 0 ] || kill -TERM "$step"

seen=
while [ "$seen" != "$signals" ]; do # a signal ends the wait, not the step
  seen=$signals code=0
  wait "$step" || code=$?
done
echo "srun ended with $code after restart ${SLURM_RESTART_COUNT:-0}"

# 2: a mistake, starting it again would not help; 75: stopped early, saved.
if [ "$code" -ne 0 ] && [ "$code" -ne 2 ] &&
  [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
