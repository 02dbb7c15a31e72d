"""The benchmarks by name. A new one is a file and a line here; a user's own is `module:Class`."""

from __future__ import annotations

import pathlib

from srpo_jax.config.registered import call_factory, find_registered
from srpo_jax.data_pipelines.answer_store import FILE
from srpo_jax.errors import UserError, one_line
from srpo_jax.evaluate.benchmarks.base import Benchmark
from srpo_jax.evaluate.benchmarks.figstep import FigStep
from srpo_jax.evaluate.benchmarks.holisafe import HoliSafe
from srpo_jax.evaluate.benchmarks.mm_safetybench import MmSafetyBench, SafeMlrm
from srpo_jax.evaluate.benchmarks.mssbench import MssBenchmark
from srpo_jax.evaluate.benchmarks.over_refusal import MossBench, XsTest
from srpo_jax.evaluate.benchmarks.rsbench import RsBench
from srpo_jax.evaluate.benchmarks.safebench import SafeBench
from srpo_jax.evaluate.benchmarks.siuo import Siuo, SiuoMcqa
from srpo_jax.evaluate.benchmarks.spa_vl import SpaVlEval
from srpo_jax.evaluate.benchmarks.usb import Usb
from srpo_jax.evaluate.benchmarks.vlguard import VlGuard
from srpo_jax.evaluate.benchmarks.vlsbench import VlsBench
from srpo_jax.files import check_plain_name, read_json

FIELD, DATA = "--benchmark", "--data"

BENCHMARKS: dict[str, type[Benchmark]] = {
    "rsbench": RsBench,
    "siuo": Siuo,
    "siuo_mcqa": SiuoMcqa,
    "mssbench": MssBenchmark,
    "usb": Usb,
    "safebench": SafeBench,
    "safemlrm": SafeMlrm,
    "mm_safetybench": MmSafetyBench,
    "vlsbench": VlsBench,
    "figstep": FigStep,
    "vlguard": VlGuard,
    "holisafe": HoliSafe,
    "mossbench": MossBench,
    "xstest": XsTest,
    "spa_vl": SpaVlEval,
}


def find_benchmark(spec: str, field: str = FIELD) -> Benchmark:
    """The benchmark of a name of BENCHMARKS, or of `module:Class`, given by `field`. Errors:
    UserError.
    """
    found = call_factory(find_registered(spec, BENCHMARKS, field), spec, field)
    if not isinstance(found, Benchmark):
        raise UserError(
            f"{field}={spec}: {one_line(found, 80)} is no "
            "srpo_jax.evaluate.benchmarks.base.Benchmark"
        )
    return found


def benchmark_of(workdir: str, answers: str) -> Benchmark | None:
    """The benchmark that the answers of this name are to, None for records of the config or where
    there are no answers. Errors: UserError.
    """
    check_plain_name(answers, "--answers")
    path = pathlib.Path(workdir, "eval", answers, FILE)
    spec = read_json(path).get("benchmark") if path.is_file() else None
    return find_benchmark(spec) if isinstance(spec, str) and spec else None


def chosen(
    names: str, data: str, name: str, *, fields: tuple[str, str] = (FIELD, DATA)
) -> list[tuple[str, str, str]]:
    """(benchmark, folder of its data or "", name of the evaluation) of --benchmark=NAME,NAME with
    --data=DIR and --name.

    data: NAME=DIR,NAME=DIR; or one folder, which has one below it for each of several benchmarks.
    name: "" for the benchmark's own; of several it stands in front of that. fields: what names and
    data are given by, for messages. Errors: UserError.
    """
    specs = [spec.strip() for spec in names.split(",")]
    if not all(specs):
        raise UserError(f"{fields[0]}={names}: a name is missing beside a comma")
    if len(set(specs)) < len(specs):
        raise UserError(f"{fields[0]}={names}: one is named twice")
    places: dict[str, str] = {}
    if "=" in data:
        for part in data.split(","):
            spec, equals, place = part.strip().partition("=")
            if not equals or not place or spec not in specs or spec in places:
                raise UserError(
                    f"{fields[1]}={data}: must be a folder, or NAME=FOLDER with commas between for "
                    f"the benchmarks {', '.join(specs)}"
                )
            places[spec] = place
    elif data:
        several = len(specs) > 1
        places = {s: str(pathlib.Path(data, _plain(s))) if several else data for s in specs}
        for spec, place in list(places.items()):
            if several and not pathlib.Path(place).exists():
                del places[spec]  # a benchmark may bring its own items; else it says what lacks
    found = []
    for spec in specs:
        plain = _plain(spec)
        told = plain if not name else name if len(specs) == 1 else f"{name}-{plain}"
        found.append((spec, places.get(spec, ""), told))
    return found


def _plain(spec: str) -> str:
    """A name for folders."""
    return spec.rpartition(":")[2]
