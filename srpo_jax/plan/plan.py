"""`srpo plan`: which mesh, remat policy and rows per step, and what to expect, without a TPU.

    questions -> rows -> legal candidates -> (least memory) -> compiled by libtpu -> ranked

Every figure of memory, FLOPs and traffic is the compiler's own for the real train step; times are
estimates (estimate.py). Compiled candidates are kept in a cache, so the command can be stopped
and run again.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.config.convert import as_config
from srpo_jax.config.fields import FIELDS, Config
from srpo_jax.config.sections import MeshSettings
from srpo_jax.console import duration
from srpo_jax.distributed.accelerators import Slice, parse_slice
from srpo_jax.distributed.mesh import abstract_mesh
from srpo_jax.distributed.sharding import bytes_per_device
from srpo_jax.errors import UserError
from srpo_jax.files import check_folder
from srpo_jax.models.flops import tower_trained
from srpo_jax.models.registry import load_model_config
from srpo_jax.plan.candidates import (
    Candidate,
    Question,
    candidates,
    least_memory,
    rows_of,
    trained_bytes,
)
from srpo_jax.plan.compile_job import describe_state
from srpo_jax.plan.compiler_pool import Compiler, Job, Result, cache_folder, check_libtpu
from srpo_jax.plan.estimate import Model, estimate
from srpo_jax.plan.table import summary
from srpo_jax.train.losses.objective import needs_reference_policy
from srpo_jax.train.train_state import state_shardings

ROW_TOKENS = 8192  # of a row, where neither the config nor the command says
LEAST_EFFORT, FULL_EFFORT = -1.0, 0.0
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says besides config and topology; `srpo plan --help` explains it."""

    meshes: tuple[tuple[int, int, int], ...] = ()
    rows: tuple[int, ...] = ()
    remats: tuple[str, ...] = ()
    row_tokens: int = 0
    question: Question = Question()
    top: int = 3
    price: float = 0.0
    full: bool = False
    cache: str = ""
    jobs: int = 0


def parse_options(given: dict[str, Any]) -> Options:
    """The options, from the values of the command line. Errors: UserError naming the option."""
    question: dict[str, Any] = {}
    for item in _split(given["question"]):
        name, _, value = item.partition("=")
        fields = {field.name: type(field.default) for field in dataclasses.fields(Question)}
        if name not in fields:
            raise UserError(f"--question: no {name!r}; there is {', '.join(fields)}")
        question[name] = _number("question", value, fields[name])
    words = FIELDS["model.remat"].rule.words
    remats = tuple(_split(given["remat"]))
    if unknown := set(remats) - set(words):
        raise UserError(f"--remat={','.join(unknown)}: allowed is {' | '.join(words)}")
    price = _number("price", given["price"], float) if given["price"] else 0.0
    for name, least in (("top", 1), ("jobs", 0), ("row_tokens", 0)):
        if given[name] < least:
            raise UserError(f"--{name}={given[name]}: at least {least}")
    return Options(
        meshes=tuple(_mesh(item) for item in _split(given["meshes"])),
        rows=tuple(_number("rows", item, int) for item in _split(given["rows"])),
        remats=remats,
        row_tokens=given["row_tokens"],
        question=Question(**question),
        price=price,
        **{name: given[name] for name in ("top", "full", "cache", "jobs")},
    )


def _split(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _number(option: str, text: str, kind: type) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not value > 0 and not (option == "question" and value == 0):
        raise UserError(f"--{option}: {text!r} is not a positive {kind.__name__}")
    return value


def _mesh(text: str) -> tuple[int, int, int]:
    """ "32*2" is fsdp*tensor, "2*16*2" data*fsdp*tensor."""
    try:
        sizes = [int(n) for n in text.split("*")]
    except ValueError:
        sizes = []
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise UserError(f"--meshes={text}: write fsdp*tensor or data*fsdp*tensor, as in 32*2")
    data, fsdp, tensor = [1] * (3 - len(sizes)) + sizes
    return data, fsdp, tensor


def plan(
    cfg: Config | ConfigDict,
    topology: str,
    options: Options,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The plan for one slice, as the JSON object that the command prints.

    say: takes progress lines (default: stderr, with the time since the start).
    Errors: UserError for what no plan can be made of, also when nothing fits.
    """
    cfg, where = as_config(cfg), parse_slice(topology)
    check_libtpu()
    say = say or progress()
    if cfg.lora.rank:
        raise UserError("srpo plan does not know adapters yet: set lora.rank to 0")
    config = load_model_config(local_folder(cfg.model.path, weights=False), cfg.model.family)
    optimizer, objective, state = describe_state(cfg, config)
    rows = rows_of(
        cfg, config, options.question, options.row_tokens or cfg.pack.row_tokens or ROW_TOKENS
    )
    model = Model(cfg, config, state, optimizer.trainable, needs_reference_policy(objective), rows)
    found, illegal = candidates(
        cfg, state.params, where, meshes=options.meshes, rows=options.rows, remats=options.remats
    )
    limit = where.chip.hbm_gib / where.chip.devices
    least = {candidate: _least_memory(model, candidate) / GIB for candidate in found}
    fitting = [candidate for candidate in found if least[candidate] <= limit]
    if not fitting:
        smallest = min(found, key=least.__getitem__)
        raise UserError(
            f"nothing fits {where.name}: even {smallest.name} needs at least "
            f"{least[smallest]:.1f} GiB of {limit:.2f}; take a larger slice or "
            "shorter rows"
        )
    dropped = [
        {"candidate": c._asdict(), "why": f"needs at least {least[c]:.1f} GiB of {limit:.2f}"}
        for c in found
        if least[c] > limit
    ]
    fitting.sort(key=lambda c: estimate(model, c, where, None).serial / c.rows)
    say(
        f"{where.name}: {len(found)} legal candidates, {len(dropped)} cannot fit; compiling until "
        f"{min(options.top, len(fitting))} fit"
    )
    compiled = _compile(cfg, model, where, fitting, options, say)
    return summary(
        model,
        where,
        compiled,
        question=dataclasses.asdict(options.question),
        price=options.price,
        dropped=dropped,
        untried=len(fitting) - len(compiled),
        illegal=illegal,
    )


def progress(what: str = "") -> Callable[[str], None]:
    """Prints lines to stderr, each with the time since now, and begun with `what`."""
    began = time.monotonic()

    def say(line: str) -> None:
        passed = duration(time.monotonic() - began)
        print(f"[{passed:>6}] {what}{line}", file=sys.stderr, flush=True)

    return say


def _least_memory(model: Model, candidate: Candidate) -> int:
    shardings = state_shardings(model.state, abstract_mesh(candidate.mesh))
    gradients = trained_bytes(model.params, shardings.params, model.trainable)
    return least_memory(
        model.cfg,
        model.config,
        candidate,
        model.rows.budgets,
        bytes_per_device(model.state, shardings),
        gradients,
        tower=tower_trained(model.trainable),
    )


def _compile(
    cfg: Config,
    model: Model,
    where: Slice,
    fitting: Sequence[Candidate],
    options: Options,
    say: Callable[[str], None],
) -> list[tuple[Candidate, Result]]:
    """What was compiled, the fitting ones first and fastest first."""
    jobs = [_job(cfg, model, where, candidate, LEAST_EFFORT) for candidate in fitting]
    names = [f"{where.name} {candidate.name}" for candidate in fitting]
    folder = cache_folder(options.cache)
    check_folder(folder)
    # The source of a tower from outside of this package is not in the digest of this package's.
    tower = inspect.getsource(sys.modules[model.config.family.tower.__module__])
    with Compiler(folder, repr(model.config) + tower, say, workers=options.jobs) as compiler:
        results = compiler.until(jobs, names, options.top)
        known = [(c, r) for c, r in zip(fitting, results) if r is not None]
        best = rank(model, where, known)
        if options.full and best[0][1]["status"] == "ok":
            winner = best[0][0]
            job = _job(cfg, model, where, winner, FULL_EFFORT)
            (again,) = compiler.until([job], [f"{names[fitting.index(winner)]} (full effort)"], 1)
            assert again  # of one job one result is wanted
            best = rank(model, where, [(winner, again), *best[1:]])
    return best


def rank(model: Model, where: Slice, known: list[tuple[Candidate, Result]]) -> list:
    """Sorts what was compiled: what fits first, by the time of a question when nothing overlaps."""

    def order(pair: tuple[Candidate, Result]) -> tuple[bool, float]:
        candidate, result = pair
        ok = result["status"] == "ok"
        seconds = estimate(model, candidate, where, result if ok else None).serial
        return not ok, seconds / candidate.rows

    return sorted(known, key=order)


def _job(cfg: Config, model: Model, where: Slice, candidate: Candidate, effort: float) -> Job:
    config = dataclasses.replace(
        cfg,
        mesh=MeshSettings(*candidate.mesh),
        model=dataclasses.replace(cfg.model, remat=candidate.remat),
        pack=dataclasses.replace(cfg.pack, rows=candidate.rows),
    )
    return {
        "config": config.to_dict(),
        "topology": where.name,
        "host_bounds": where.host_bounds,
        "budgets": dataclasses.asdict(model.rows.budgets),
        "effort": effort,
    }
