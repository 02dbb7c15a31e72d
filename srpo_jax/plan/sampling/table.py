"""The figures of a plan for exploration, and how they are printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from srpo_jax.console import duration
from srpo_jax.plan.candidates import Question
from srpo_jax.plan.compiler_pool import Result
from srpo_jax.plan.estimate import EFFICIENCY
from srpo_jax.plan.sampling.estimate import Candidate
from srpo_jax.plan.sampling.task import Task
from srpo_jax.plan.table import aligned, few, short

GIB = 2**30
HEADER = (
    "mesh",
    "batch",
    "GiB of HBM",
    "sent MB/token",
    "step ms",
    "slots used %",
    "useful tok/s/chip",
    "q/s",
    "$/1000 q",
    "most of the time",
    "compile",
)


def summary(
    task: Task,
    compiled: Sequence[tuple[Candidate, Result]],
    question: Question,
    *,
    price: float,
    dropped: list[dict[str, Any]],
    chosen: Candidate | None,
) -> dict[str, Any]:
    """The JSON object. compiled: the best first; price: per chip-hour, 0: the table's; dropped:
    what cannot fit; chosen: what explore.mesh=auto takes."""
    chip = task.where.chip
    price = price or chip.price
    entries = [_entry(task, price, *pair) for pair in compiled]
    best = compiled[0][0] if entries[0]["status"] == "ok" else None
    return {
        "for": "explore",
        "topology": task.whole.name,
        "chips": task.whole.chips,
        "mesh_topology": task.where.name,
        "hosts_alone": task.hosts,
        "chip": {
            name: getattr(chip, name)
            for name in ("peak_tflops", "hbm_gib", "hbm_gbs", "ici_gbs", "links")
        }
        | {"price": price},
        "model": task.cfg.model.path,
        "dtype": task.cfg.model.dtype,
        "question": dataclasses.asdict(question)
        | {"branches": task.cfg.explore.branches, "most": task.cfg.explore.max_new_tokens},
        "shape": dataclasses.asdict(task.shape) | {"rows": 0},
        "workload": task.work._asdict(),
        "candidates": entries,
        "dropped": dropped,
        "auto": chosen and {**chosen._asdict()},
        "config": best and _config_lines(task, best),
        "efficiency": EFFICIENCY,
    }


def _config_lines(task: Task, best: Candidate) -> dict[str, Any]:
    sizes = zip(("data", "fsdp", "tensor"), best.mesh)
    mesh = ",".join(f"{name}={size}" for name, size in sizes if size > 1 or name == "data")
    return {"explore.mesh": mesh, "explore.batch": best.rows, "explore.slots": task.shape.slots}


def _entry(task: Task, price: float, candidate: Candidate, result: Result) -> dict[str, Any]:
    """One candidate's figures; rates are of the whole slice."""
    entry: dict[str, Any] = {**candidate._asdict(), "status": result["status"]}
    if result["status"] != "ok":
        return entry | {key: result[key] for key in ("message", "needed_gib") if key in result}
    found = task.estimate(candidate, result["programs"])
    rate = found.questions_per_second * task.hosts
    programs = result["programs"]
    return entry | {
        "peak_gib": result["peak_bytes"] / GIB,
        "hbm_gib": task.memory / GIB,
        "weights_gib": result["weight_bytes"] / GIB,
        "state_gib": result["state_bytes"] / GIB,
        "decode_collectives": programs["decode"]["collectives"],
        "sent_bytes": sum(each["wire_bytes"] for each in programs["decode"]["collectives"]),
        "read_bytes": found.bytes._asdict(),
        "compiled_flops_per_device": {name: each["flops"] for name, each in programs.items()},
        "seconds": {
            "step": found.step._asdict() | {"serial": found.step.serial},
            "prefill": found.prefill._asdict() | {"serial": found.prefill.serial},
        },
        "parts": found.parts,
        "slots_in_use": found.slots_in_use,
        "tokens_per_second": found.tokens_per_second * task.hosts,
        "tokens_per_second_chip": found.tokens_per_second / task.where.chips,
        "questions_per_second": rate,
        "usd_per_1000_questions": 1000 / rate / 3600 * price * task.whole.chips,
        "compile_seconds": result["seconds"],
    }


def text(plan: dict[str, Any]) -> str:
    """The plan for people."""
    shape, work = plan["shape"], plan["workload"]
    hosts = plan["hosts_alone"]
    alone = f", {hosts} hosts of {plan['mesh_topology']}, each on its own" if hosts > 1 else ""
    lines = [
        f"exploring with {plan['model'] or 'model'}, {plan['dtype']}, on {plan['topology']} "
        f"({plan['chips']} chips{alone})",
        "a question: " + ", ".join(f"{name} {value}" for name, value in plan["question"].items()),
        f"in a row: {shape['tokens']} tokens, {shape['patches']} patches, {shape['branches']} "
        f"branches in {shape['slots']} slots; a question has {work['tokens']:.0f} tokens to decode "
        f"in {work['steps']:.0f} steps",
        "",
        *aligned(HEADER, [_cells(entry) for entry in plan["candidates"]]),
    ]
    for entry in plan["candidates"]:
        if entry["status"] != "ok":
            lines.append(f"{_mesh(entry)} {entry['rows']}: {entry['message']}")
    lines += [f"cannot fit: {'*'.join(map(str, d['mesh']))}: {d['why']}" for d in plan["dropped"]]
    best = plan["candidates"][0]
    if best["status"] == "ok":
        lines += ["", *_details(best), ""]
        lines.append("use: " + " ".join(f"--config.{k}={v}" for k, v in plan["config"].items()))
        auto = plan["auto"]
        if auto and _mesh(auto) != _mesh(best):
            lines.append(f"explore.mesh=auto takes {_mesh(auto)}")
    else:
        lines += ["", "nothing fits: take larger chips, fewer branches or shorter ones"]
    return "\n".join([*lines, "", *assumptions(plan)])


def markdown(plans: Sequence[dict[str, Any]]) -> str:
    """One table over all candidates of several plans. A compilation that broke has no figures and
    stands in the JSON object only."""
    named = any("name" in plan for plan in plans)
    header = (*(("model",) if named else ()), "TPU", *HEADER)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for plan in plans:
        for entry in plan["candidates"]:
            if entry["status"] != "failed":
                cells = (plan.get("name", ""), plan["topology"], *_cells(entry))
                lines.append("| " + " | ".join(cells[0 if named else 1 :]) + " |")
    return "\n".join([*lines, "", *assumptions(plans[0])])


def assumptions(plan: dict[str, Any]) -> list[str]:
    """What the figures rest on."""
    question = plan["question"]
    return [
        "memory, FLOPs and traffic: the compiler's, per device. Times: a roofline, "
        f"{plan['efficiency']:.0%} of peak, nothing overlaps the network, starting kernels costs "
        "nothing; no TPU was measured.",
        f"the questions are invented (--question=...): branches of {question['branch_tokens']} "
        f"tokens on average, exponentially distributed, cut at {question['most']}; slots in use "
        "follow from that. Own caches are read as if they were full.",
    ]


def _mesh(entry: dict[str, Any]) -> str:
    return "*".join(str(entry[name]) for name in ("data", "fsdp", "tensor"))


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    first = (_mesh(entry), str(entry["rows"]))
    if entry["status"] != "ok":
        needed = entry.get("needed_gib")
        said = f"needs {needed:.1f}" if needed else entry["status"]
        return (*first, said, *[""] * (len(HEADER) - len(first) - 1))
    most, share = max(entry["parts"].items(), key=lambda item: item[1])
    return (
        *first,
        f"{entry['peak_gib']:.1f} of {entry['hbm_gib']:.2f}",
        f"{entry['sent_bytes'] / 1e6:.1f}",
        few(1000 * entry["seconds"]["step"]["serial"]),
        f"{100 * entry['slots_in_use']:.0f}",
        f"{entry['tokens_per_second_chip']:.0f}",
        few(entry["questions_per_second"]),
        few(entry["usd_per_1000_questions"]),
        f"{most} {100 * share:.0f} %",
        duration(entry["compile_seconds"]),
    )


def _details(entry: dict[str, Any]) -> list[str]:
    read, step, filled = entry["read_bytes"], entry["seconds"]["step"], entry["seconds"]["prefill"]
    where = sorted(entry["parts"].items(), key=lambda item: -item[1])
    lines = [
        f"best: {_mesh(entry)}, {entry['rows']} questions at once: {entry['weights_gib']:.1f} GiB "
        f"weights, {entry['state_gib']:.1f} GiB caches, {entry['peak_gib']:.1f} GiB at the peak",
        "a step reads, GB a device: "
        + ", ".join(f"{name} {few(size / 1e9)}" for name, size in read.items()),
        f"ms of a step: memory {few(1e3 * step['memory'])}, arithmetic "
        f"{few(1e3 * step['compute'])}, network {few(1e3 * step['network'])}; of a prefill "
        f"{few(1e3 * filled['serial'])}",
        "time of a question: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in where),
    ]
    for each in sorted(entry["decode_collectives"], key=lambda c: -c["wire_bytes"]):
        lines.append(
            f"  {each['kind']:<18} over {'*'.join(each['axes']):<8} {each['count']:>5} times a "
            f"step, {each['wire_bytes'] / 1e6:8.2f} MB sent; {each['largest'][0][1]:.0%} for "
            f"{short(each['largest'][0][0])}"
        )
    return lines
