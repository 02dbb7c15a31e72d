"""`srpo eval`: whose answers, and to what: records of the config, or several benchmarks."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from srpo_jax.config.fields import Config
from srpo_jax.data_pipelines.answer_store import read_answers
from srpo_jax.distributed.lifecycle import distributed_session, wait_for_all
from srpo_jax.errors import UserError
from srpo_jax.evaluate.answering import decoding_of
from srpo_jax.evaluate.benchmarks.base import Benchmark
from srpo_jax.evaluate.benchmarks.registry import chosen, find_benchmark
from srpo_jax.evaluate.best_of import choose_best, open_pool
from srpo_jax.evaluate.evaluate import evaluate, questions
from srpo_jax.evaluate.served import Server
from srpo_jax.files import check_plain_name
from srpo_jax.inference.policy import load_policy
from srpo_jax.runs.looks import tell_look

USUAL = "eval"  # the name of an evaluation of records


def evaluate_all(config: Config, workdir: str, options: Mapping[str, Any]) -> None:
    """Answers everything that the options name, with one policy. What of them is wrong is told
    before it is loaded. Errors: UserError.
    """
    tasks = [("", "", options["name"] or USUAL)]
    if options["benchmark"]:
        tasks = chosen(options["benchmark"], options["data"], options["name"])
    for benchmark, data, name in tasks:
        check_plain_name(name, "--name")
        if benchmark:
            _check(config, pathlib.Path(workdir), find_benchmark(benchmark), data, options)
    with distributed_session(config.processes, config):
        first = jax.process_index() == 0
        whose, how = _policy(config, workdir, options)
        if first:
            print(f"policy: {whose}", flush=True)
        for benchmark, data, name in tasks:
            folder = evaluate(config, workdir, name, benchmark=benchmark, data=data, **how)
            if first:
                print(f"answers: {folder}; `srpo judge --answers={name}` scores them", flush=True)
        wait_for_all()  # process 0 reads what it wrote


def choose_among(config: Config, workdir: str, options: Mapping[str, Any]) -> None:
    """Makes an evaluation of the best answers among those that --best_of names. Errors:
    UserError.
    """
    pool = open_pool(pathlib.Path(workdir), options["best_of"], options["verdicts"])
    spec = str(pool.about.get("benchmark", "")).rpartition(":")[2]
    name = options["name"] or f"best_of_{pool.samples}{spec and '-'}{spec}"
    folder = choose_best(config, pathlib.Path(workdir), name, pool)
    judge = pool.verdicts.judge
    told = f"best of {pool.samples} of {pool.name} by {judge['arbiter']}, digest {judge['digest']}"
    print(f"answers: {folder}, {told}; `srpo judge --answers={name}` scores them", flush=True)
    tell_look(workdir, name, read_answers(folder)[0])


def _check(
    config: Config,
    workdir: pathlib.Path,
    benchmark: Benchmark,
    data: str,
    options: Mapping[str, Any],
) -> None:
    """What is wrong with a benchmark's data, settings or policy, before others are answered."""
    decoding_of(config, benchmark)
    records, _ = questions(config, workdir, benchmark, data)
    if options["served_model"] and benchmark.choices(records[0]):
        raise UserError(f"{benchmark.name} needs log-probabilities: give --model")


def _policy(config: Config, workdir: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(whose answers, what evaluate is told of that)."""
    model, served = options["model"], options["served_model"]
    if served:
        if model:
            raise UserError("--model and --served_model exclude each other")
        fields = ("base_url", "api_key_env", "allow_upload")
        given = {name: options[name] for name in fields if options[name]}
        server = Server(served, **given)
        return f"{served} at {server.base_url}", {"server": server}
    if not model and pathlib.Path(workdir, "checkpoints").is_dir():
        from srpo_jax.export.export import sampling_params

        step, params = sampling_params(config, workdir)
        policy = load_policy(config, params=params)
        return f"checkpoint {step} of {workdir}", {"policy": policy}
    if "," not in options["benchmark"]:  # it is loaded when its place is seen to be free
        return model or config.model.path, {"model_dir": model or None}
    return model or config.model.path, {"policy": load_policy(config, model_dir=model or None)}
