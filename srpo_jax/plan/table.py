"""The figures of a plan, and how they are printed: a table for people, Markdown for pages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from srpo_jax.console import duration
from srpo_jax.distributed.accelerators import Slice
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.plan.candidates import Candidate
from srpo_jax.plan.compiler_pool import Result
from srpo_jax.plan.estimate import EFFICIENCY, Estimate, Model, estimate

GIB = 2**30
HEADER = (
    "mesh d*f*t",
    "rows",
    "remat",
    "GiB of HBM",
    "step s",
    "MFU %",
    "tok/s/chip",
    "q/s",
    "$/1000 q",
    "sent GB",
    "compile",
)


def summary(
    model: Model,
    where: Slice,
    compiled: Sequence[tuple[Candidate, Result]],
    *,
    question: dict[str, Any],
    price: float,
    dropped: list[dict[str, Any]],
    untried: int,
    illegal: list[str],
) -> dict[str, Any]:
    """The JSON object of a plan. compiled: the best first; price: per chip-hour, 0: the table's;
    dropped: what cannot fit; untried: how many more could, and are slower as guessed.
    """
    cfg, chip, rows = model.cfg, where.chip, model.rows
    price = price or chip.price
    entries = [_entry(model, where, price, *pair) for pair in compiled]
    best = entries[0] if entries[0]["status"] == "ok" else None
    sizes = {path: math.prod(x.shape) for path, x in by_path(model.params).items()}
    return {
        "topology": where.name,
        "chips": where.chips,
        "devices": where.devices,
        "chip": {
            name: getattr(chip, name)
            for name in ("peak_tflops", "hbm_gib", "hbm_gbs", "ici_gbs", "links")
        }
        | {"price": price},
        "model": cfg.model.path,
        "parameters": sum(sizes.values()),
        "trained": sum(sizes[path] for path in model.trainable),
        "dtype": cfg.model.dtype,
        "question": question | {"branches": cfg.explore.branches},
        "row": dataclasses.asdict(rows.budgets) | {"questions": rows.questions},
        "candidates": entries,
        "dropped": dropped,
        "untried": untried,
        "illegal": illegal,
        "config": best and _config_lines(best, rows.budgets.tokens),
        "efficiency": EFFICIENCY,
    }


def _config_lines(entry: dict[str, Any], row_tokens: int) -> dict[str, Any]:
    mesh = {f"mesh.{name}": entry[name] for name in ("data", "fsdp", "tensor")}
    more = {"model.remat": entry["remat"], "pack.rows": entry["rows"]}
    return {**mesh, **more, "pack.row_tokens": row_tokens}


def _entry(
    model: Model, where: Slice, price: float, candidate: Candidate, result: Result
) -> dict[str, Any]:
    """One candidate's figures. Rates and costs are those of `serial`, the longer step."""
    entry: dict[str, Any] = {**candidate._asdict(), "status": result["status"]}
    if result["status"] != "ok":
        return entry | {key: result[key] for key in ("message", "needed_gib") if key in result}
    time_of: Estimate = estimate(model, candidate, where, result)
    work = model.rows.work.times(candidate.rows)
    questions = model.rows.questions * candidate.rows
    peak = where.chips * where.chip.peak_tflops * 1e12
    useful = time_of.model_flops.total
    rate = questions / time_of.serial
    return entry | {
        "chips": where.chips,
        "peak_gib": result["peak_bytes"] / GIB,
        "argument_gib": result["argument_bytes"] / GIB,
        "hbm_gib": where.chip.hbm_gib / where.chip.devices,
        "model_flops": {**time_of.model_flops._asdict(), "total": useful},
        "compiled_flops_per_device": result["flops"],
        "kernels": result["kernels"],
        "kernel_flops_declared": result["kernel_flops"],
        "executed_flops_per_device": time_of.executed_flops,
        "hbm_gb_per_device": time_of.hbm_bytes / 1e9,
        "collectives": result["collectives"],
        "unknown_loops": result["unknown_loops"],
        "seconds": {
            "compute": time_of.compute,
            "memory": time_of.memory,
            "network": time_of.network,
            "host": time_of.host,
            "overlapped": time_of.overlapped,
            "serial": time_of.serial,
        },
        "mfu": [useful / peak / time_of.serial, useful / peak / time_of.overlapped],
        "tokens_per_second": work.tokens / time_of.serial,
        "questions_per_step": questions,
        "questions_per_second": rate,
        "usd_per_1000_questions": 1000 / rate / 3600 * price * where.chips,
        "compile_seconds": result["seconds"],
    }


def text(plan: dict[str, Any]) -> str:
    """The plan for people: table, what the best one is made of, config lines, assumptions."""
    row, question, chip = plan["row"], plan["question"], plan["chip"]
    lines = [
        f"{plan['model'] or 'model'}: {few(plan['trained'] / 1e9)}B of "
        f"{few(plan['parameters'] / 1e9)}B parameters trained, {plan['dtype']}, on "
        f"{plan['topology']} ({plan['chips']} chips)",
        f"a row: {row['tokens']} tokens, {row['targets']} targets, {row['patches']} patches, "
        f"{row['sequences']} sequences, {row['pairs']} pairs, {row['questions']:.2f} questions",
        "a question: " + ", ".join(f"{name} {value}" for name, value in question.items()),
        "",
        *aligned(HEADER, [_cells(entry) for entry in plan["candidates"]]),
    ]
    for entry in plan["candidates"]:
        if entry["status"] != "ok":
            lines.append(f"{_mesh(entry)} {entry['remat']} {entry['rows']}: {entry['message']}")
    if plan["dropped"]:
        first = ", ".join(
            f"{_mesh(d['candidate'])} rows {d['candidate']['rows']} "
            f"{d['candidate']['remat']} {d['why']}"
            for d in plan["dropped"][:3]
        )
        more = len(plan["dropped"]) - 3
        lines.append(f"cannot fit: {first}" + (f", and {more} more" if more > 0 else ""))
    if plan["untried"]:
        lines.append(f"not compiled: {plan['untried']} more, slower as guessed (--top=N)")
    lines += [f"not legal: {why}" for why in plan["illegal"]]
    best = plan["candidates"][0]
    if best["status"] == "ok":
        lines += ["", *_details(best), ""]
        lines.append("use: " + " ".join(f"--config.{k}={v}" for k, v in plan["config"].items()))
    else:
        lines += ["", "nothing fits: take a larger slice or shorter rows"]
    lines += ["", *assumptions(plan, chip)]
    return "\n".join(lines)


def markdown(plans: Sequence[dict[str, Any]]) -> str:
    """One table over all candidates of several plans, the best of each plan first. A compilation
    that broke has no figures and stands in the JSON object only.
    """
    rows = [
        (plan.get("name", plan["topology"]), plan["topology"], *_cells(entry))
        for plan in plans
        for entry in plan["candidates"]
        if entry["status"] != "failed"
    ]
    named = any("name" in plan for plan in plans)
    header = (*(("model",) if named else ()), "TPU", *HEADER)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cells[0 if named else 1 :]) + " |" for cells in rows]
    return "\n".join([*lines, "", *assumptions(plans[0])])


def assumptions(plan: dict[str, Any], chip: dict[str, Any] | None = None) -> list[str]:
    """What the figures rest on, in two lines."""
    cost = (
        f"${chip['price']:.2f} per chip-hour"
        if chip
        else "prices as in srpo_jax/distributed/accelerators.py"
    )
    return [
        "memory, FLOPs and traffic: the compiler's, per device. Times: "
        f"{plan['efficiency']:.0%} of peak, no TPU was measured; MFU from no overlap to full "
        f"overlap, rates without; {cost}.",
        "the questions are invented (--question=...); more rows a step also change what is learnt; "
        "peaks, links and prices: srpo_jax/distributed/accelerators.py, to edit.",
    ]


def short(source: str, parts: int = 3) -> str:
    """The last parts of an operation's path in the model."""
    return "/".join(source.split("/")[-parts:])


def few(x: float) -> str:
    """The number with two decimals, or two digits if it is small."""
    return f"{x:.2f}" if x >= 0.1 else f"{x:.2g}"


def _mesh(entry: dict[str, Any]) -> str:
    return "*".join(str(entry[name]) for name in ("data", "fsdp", "tensor"))


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    first = (_mesh(entry), str(entry["rows"]), entry["remat"])
    if entry["status"] != "ok":
        needed = entry.get("needed_gib")
        said = f"needs {needed:.1f}" if needed else entry["status"]
        return (*first, said, *[""] * (len(HEADER) - len(first) - 1))
    seconds, mfu = entry["seconds"], entry["mfu"]
    sent = sum(each["wire_bytes"] for each in entry["collectives"]) / 1e9
    return (
        *first,
        f"{entry['peak_gib']:.1f} of {entry['hbm_gib']:.2f}",
        f"{few(seconds['overlapped'])}-{few(seconds['serial'])}",
        f"{100 * mfu[0]:.0f}-{100 * mfu[1]:.0f}",
        f"{entry['tokens_per_second'] / entry['chips']:.0f}",
        f"{entry['questions_per_second']:.1f}",
        few(entry["usd_per_1000_questions"]),
        f"{sent:.1f}",
        duration(entry["compile_seconds"]),
    )


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, as wide as its widest cells."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip()
        for row in (header, *rows)
    ]


def _details(entry: dict[str, Any]) -> list[str]:
    flops, seconds = entry["model_flops"], entry["seconds"]
    parts = ", ".join(
        f"{name} {100 * flops[name] / flops['total']:.0f} %"
        for name in ("decoder", "attention", "head", "vision")
    )
    lines = [
        f"best: {_mesh(entry)}, {entry['rows']} rows, remat {entry['remat']}: "
        f"{entry['argument_gib']:.1f} GiB state and batch, {entry['peak_gib']:.1f} GiB at the peak",
        f"model FLOPs of a step: {flops['total']:.3g} ({parts})",
        f"FLOPs per device: {entry['compiled_flops_per_device']:.3g} compiled outside kernels, "
        f"{entry['executed_flops_per_device']:.3g} with the kernels' share; HBM traffic: at least "
        f"{few(entry['hbm_gb_per_device'])} GB",
        f"seconds: compute {few(seconds['compute'])}, HBM {few(seconds['memory'])}, network "
        f"{few(seconds['network'])}, host {few(seconds['host'])}",
    ]
    kernels = ", ".join(f"{name} {runs} times" for name, runs in entry["kernels"].items())
    lines.append(f"kernels: {kernels or 'none'}")
    for each in sorted(entry["collectives"], key=lambda c: -c["wire_bytes"]):
        if each["wire_bytes"] >= 1e6:
            lines.append(
                f"  {each['kind']:<18} over {'*'.join(each['axes']):<12} {each['count']:>6} times, "
                f"{each['bytes'] / 1e9:8.2f} GB, {each['wire_bytes'] / 1e9:8.2f} GB sent; "
                f"{each['largest'][0][1]:.0%} for {short(each['largest'][0][0])}"
            )
    if entry["unknown_loops"]:
        lines.append(
            f"counted once: {len(entry['unknown_loops'])} loops whose length is data, "
            f"as {short(entry['unknown_loops'][0])}"
        )
    return lines
