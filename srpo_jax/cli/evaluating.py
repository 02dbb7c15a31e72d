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
from srpo_jax.evaluate.benchmarks.registry import chosen
from srpo_jax.evaluate.best_of import choose_best, open_pool
from srpo_jax.evaluate.evaluate import Task, answer, make_task
from srpo_jax.evaluate.served import Server
from srpo_jax.files import check_plain_name
from srpo_jax.inference.policy import load_policy
from srpo_jax.runs.looks import tell_look
from srpo_jax.train.checkpoint.seal import steps_in

USUAL = "eval"  # the name of an evaluation of records


def evaluate_all(config: Config, workdir: str, options: Mapping[str, Any]) -> None:
    """Answers everything that the options name, with one policy. What of them is wrong is told
    before it is loaded. Errors: UserError.
    """
    named = [("", "", options["name"] or USUAL)]
    if options["benchmark"]:
        named = chosen(options["benchmark"], options["data"], options["name"])
    for _, _, name in named:
        check_plain_name(name, "--name")
    place, count = pathlib.Path(workdir), config.eval.num_questions

    def made() -> list[Task]:
        return [make_task(config, place, name, b, d, count=count) for b, d, name in named]

    tasks = made() if options["benchmark"] else []
    for task in tasks if options["served_model"] else ():
        task.check_served()
    with distributed_session(config.processes, config):
        first = jax.process_index() == 0
        whose, how = _policy(config, workdir, options)
        if first:
            print(f"policy: {whose}", flush=True)
        # Records of the config are drawn on first use, by one of the processes.
        for task in tasks or made():
            folder = answer(task, **how)
            if first:
                told = f"answers: {folder}; `srpo judge --answers={task.name}` scores them"
                print(told, flush=True)
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
    if not model and steps_in(pathlib.Path(workdir, "checkpoints")):
        from srpo_jax.export.export import sampling_params

        step, params = sampling_params(config, workdir)
        policy = load_policy(config, params=params)
        return f"checkpoint {step} of {workdir}", {"policy": policy}
    if "," not in options["benchmark"]:  # it is loaded when its place is seen to be free
        return model or config.model.path, {"model_dir": model or None}
    policy = load_policy(config, model_dir=model or None)
    return model or config.model.path, {"policy": policy, "model_dir": model or None}
