"""Stands for srpo_jax.plan.compile_job in test_plan.py: answers at once, or as the job's name asks.

The number of rows says how: 4 fits, 8 does not fit, 12 is refused, 16 breaks, 20 takes for ever.
Each start is noted in the file STARTS, as a process id a line.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time


def _end_with_parent() -> None:
    while os.read(0, 4096):  # not through sys.stdin, whose lock would be missed at the end
        pass
    os._exit(1)


def main() -> None:
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(os.environ["STARTS"], "a") as file:
        file.write(f"{os.getpid()}\n")
    rows = job["config"]["pack"]["rows"]
    result = {
        "status": "ok",
        "device_kind": "fake",
        "peak_bytes": 2**30,
        "argument_bytes": 2**29,
        "temp_bytes": 2**29,
        "trace_seconds": 0.1,
        "seconds": 0.2,
        "flops": 1e12,
        "kernel_flops": 0.0,
        "kernels": {},
        "unknown_loops": [],
        "collectives": [
            {
                "kind": "all-gather",
                "axes": ["fsdp"],
                "group": 4,
                "count": 2,
                "bytes": 8e9,
                "wire_bytes": 6e9,
                "extent": [2, 2],
                "largest": [["jit(train_step)/layers/mlp/up/dot_general", 0.5]],
            }
        ],
    }
    if rows == 8:
        result = {"status": "oom", "message": "Ran out of memory", "needed_gib": 18.75}
    elif rows == 12:
        result = {"status": "refused", "message": "not this"}
    elif rows == 16:
        raise ValueError("broken")
    elif rows == 20:
        time.sleep(600)
    print(json.dumps(result), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
