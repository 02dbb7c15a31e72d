"""How fast and in how much memory a checkpoint becomes sharded arrays, beside the obvious ways.

    python -m studies.speed.checkpoint_import [--gigabytes=3] [--repeats=2] [--cold] [--folder=DIR]

Writes a synthetic Qwen2.5-VL checkpoint of that size to a temporary folder (removed at the end) and
reads it on 8 virtual CPU devices, every case in processes of its own:

    ours        srpo_jax.models.hf.load.load_params, on meshes fsdp 8 and fsdp 4 x tensor 2
    host        safetensors: every tensor as a numpy array (no device, no layout)
    put         safetensors, then jax.device_put of every tensor as it is in the file, sharded
    by hand     safetensors, transposed and stacked with numpy into the model's parameters, then
                jax.device_put with our shardings: the same result as ours

What is counted: on CPU the arrays themselves lie in host memory, so their bytes are told apart.
"over" is anonymous memory (RssAnon of /proc/self/status) above what the process had before and
above the arrays that exist at that moment, at its worst: what the host needs besides the model.
"mapped" is the peak of file-backed pages (RssFile), which the kernel can drop at any time. Seconds
are the best of the repeats, with the files in the page cache (--cold: evicted before each run).
Time and memory are taken in different runs, because sampling costs time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from studies.speed.checkpoint_import.synthetic_checkpoint import write_checkpoint

DEVICES = 8
MESHES = {"fsdp8": (8, 1), "fsdp4xtensor2": (4, 2)}
CASES = [
    *(("ours", mesh, dtype) for mesh in MESHES for dtype in ("bfloat16", "float32")),
    ("host", "", "bfloat16"),
    *((way, "fsdp8", dtype) for way in ("put", "by hand") for dtype in ("bfloat16", "float32")),
]
SAMPLE_SECONDS = 0.005


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.speed.checkpoint_import")
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=2, help="timed runs of a case")
    parser.add_argument("--cold", action="store_true", help="time without the page cache")
    parser.add_argument("--folder", default=None, help="where the checkpoint is written")
    parser.add_argument("--case", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(**json.loads(args.case))))
        return

    place = pathlib.Path(args.folder or tempfile.gettempdir())
    free, needed = shutil.disk_usage(place).free, args.gigabytes * 1.1e9
    if free < needed:
        sys.exit(f"{place} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} are needed")
    with tempfile.TemporaryDirectory(prefix="import_checkpoint_", dir=place) as folder:
        print(f"writing {args.gigabytes:g} GB ...", flush=True)
        checkpoint = write_checkpoint(pathlib.Path(folder, "model"), args.gigabytes)
        report(measure_all(checkpoint, args.repeats, args.cold), args.gigabytes)


def measure_all(checkpoint: pathlib.Path, repeats: int, cold: bool) -> list[dict]:
    found = []
    for way, mesh, dtype in CASES:
        case = {"folder": str(checkpoint), "way": way, "mesh": mesh, "dtype": dtype}
        runs = []
        for _ in range(repeats):
            cache(checkpoint, keep=not cold)
            runs.append(child(case, sample=False))
        cache(checkpoint, keep=True)
        memory = child(case, sample=True)
        best = min(runs, key=lambda run: run["seconds"])
        found.append({"way": way, "mesh": mesh, "dtype": dtype, **memory, **best})
        print(f"  {way} {mesh} {dtype}: {best['seconds']:.1f} s", flush=True)
    return found


def cache(folder: pathlib.Path, keep: bool) -> None:
    """Puts the weight files into the page cache, or throws them out of it."""
    for file in folder.glob("*.safetensors"):
        with open(file, "rb") as f:
            if keep:
                while f.read(1 << 24):
                    pass
            else:
                os.fsync(f.fileno())
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def child(case: dict, *, sample: bool) -> dict:
    """run_case in a process of its own."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "studies.speed.checkpoint_import",
            "--case",
            json.dumps({**case, "sample": sample}),
        ],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{case} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_case(folder: str, way: str, mesh: str, dtype: str, sample: bool) -> dict:
    """Seconds and processor seconds; or, with `sample`, bytes: arrays, over and mapped."""
    import jax
    import jax.numpy as jnp

    from srpo_jax.distributed.mesh import make_mesh
    from studies.speed.checkpoint_import.ways import WAYS

    fsdp, tensor = MESHES.get(mesh, (DEVICES, 1))
    run = WAYS[way](folder, make_mesh(1, fsdp, tensor), jnp.dtype(dtype))
    jax.block_until_ready(jax.device_put(1.0))  # the devices exist before anything is counted
    if sample:
        with Memory() as memory:
            kept = run()
        arrays = jax.tree.leaves(kept)
        assert len(arrays) > 0
        return {"arrays": sum(x.nbytes for x in arrays), **memory.peaks}
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    kept = run()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    del kept
    return {"seconds": seconds, "processor_seconds": processor}


class Memory:
    """Samples this process in a thread while the context is open. peaks: see the head of the file;
    whole is the peak of anonymous memory above the beginning, arrays included."""

    def __enter__(self) -> Memory:
        self.peaks = {"over": 0, "mapped": 0, "whole": 0}
        self._before = status()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            # Arrays before memory: one that comes in between counts as over, never as less.
            arrays, now = live_bytes(), status()
            anonymous = now["RssAnon"] - self._before["RssAnon"]
            for name, value in (
                ("over", anonymous - arrays),
                ("mapped", now["RssFile"] - self._before["RssFile"]),
                ("whole", anonymous),
            ):
                self.peaks[name] = max(self.peaks[name], value)


def status() -> dict[str, int]:
    """Bytes of this process's resident memory by kind."""
    with open("/proc/self/status") as f:
        fields = dict(line.split(":", 1) for line in f)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")}


def live_bytes() -> int:
    """Bytes of the device buffers that exist now, each counted once."""
    import jax

    buffers = {}
    for array in jax.live_arrays():
        try:
            for shard in array.addressable_shards:
                buffers[shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
        except RuntimeError:  # deleted in the meantime
            continue
    return sum(buffers.values())


def report(rows: list[dict], gigabytes: float) -> None:
    """Prints the table and the JSON line."""
    print(
        f"\n{'':<9}{'mesh':<15}{'dtype':<10}{'seconds':>8}{'cpu s':>8}"
        f"{'arrays MB':>11}{'over MB':>9}{'mapped MB':>11}"
    )
    for row in rows:
        print(
            f"{row['way']:<9}{row['mesh'] or '-':<15}{row['dtype']:<10}{row['seconds']:>8.1f}"
            f"{row['processor_seconds']:>8.1f}{row['arrays'] / 1e6:>11.0f}"
            f"{row['over'] / 1e6:>9.0f}{row['mapped'] / 1e6:>11.0f}"
        )
    by_case = {(row["way"], row["mesh"], row["dtype"]): row for row in rows}
    ratios = {}
    for dtype in ("bfloat16", "float32"):
        ours = by_case["ours", "fsdp8", dtype]
        for way in ("put", "by hand"):
            theirs = by_case[way, "fsdp8", dtype]
            name = f"{way.replace(' ', '_')}_over_ours_{dtype}"
            ratios[f"seconds_{name}"] = round(theirs["seconds"] / ours["seconds"], 3)
            ratios[f"over_{name}"] = round(theirs["over"] / max(ours["over"], 1), 3)
        ratios[f"over_to_arrays_{dtype}"] = round(ours["over"] / ours["arrays"], 4)
    print(
        json.dumps(
            {
                "benchmark": "import_checkpoint",
                "gigabytes": gigabytes,
                "ratios": ratios,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
