env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 SRPO_COORDINATOR=127.0.0.1:PORT SRPO_NUM_PROCESSES=2 SRPO_PROCESS_ID=0 JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:PORT PYTHONUNBUFFERED=1 python -m srpo_jax.cli train --config=configs/ssui_mini.py --workdir=runs/mini &
env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 SRPO_COORDINATOR=127.0.0.1:PORT SRPO_NUM_PROCESSES=2 SRPO_PROCESS_ID=1 JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:PORT PYTHONUNBUFFERED=1 python -m srpo_jax.cli train --config=configs/ssui_mini.py --workdir=runs/mini
# PORT: a free one, picked at each start; all processes run at the same time
