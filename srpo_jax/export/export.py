"""`srpo export`: a verified checkpoint of a workdir, the newest or another, as a HF directory.

hf_checkpoint.py writes the weights in the source checkpoint's own form, peft.py writes adapters
alone in peft's, model_card.py writes the card; here the run is read back. A run with LoRA recorded
adapters: their policy's weights are read again from its folder, which must hold what it held then.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from srpo_jax.buckets.fetch import local_folder
from srpo_jax.config.convert import as_config, stored_config
from srpo_jax.config.fields import Config, arguments
from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.distributed.sharding import param_shardings, replicated
from srpo_jax.errors import UserError
from srpo_jax.export.baked_prompt import baking, check_bakeable
from srpo_jax.export.digests import write_digests
from srpo_jax.export.hf_checkpoint import export_checkpoint
from srpo_jax.export.limited_pixels import limiting
from srpo_jax.export.model_card import model_card
from srpo_jax.export.peft import export_adapters
from srpo_jax.files import check_folder, read_json
from srpo_jax.inference.prompting import Asking, load_asking
from srpo_jax.inference.sampling_mesh import sampling_mesh
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.hf import load
from srpo_jax.models.hf.weights_digest import policy_digest
from srpo_jax.models.policy_model import abstract_params
from srpo_jax.models.registry import load_model_config
from srpo_jax.runs.identity import PROMPT, check_policy_files
from srpo_jax.runs.workdir import read_config
from srpo_jax.train.checkpoint.manager import load_params
from srpo_jax.train.checkpoint.seal import steps_in
from srpo_jax.train.lora import Lora, init_adapters, make_lora, merged_params, merging
from srpo_jax.train.optimizer import merge, select, trainable_paths

FORMS = ("merged", "peft")
NEWEST: dict[str, Any] = {}


def newest_params(
    config: Config | ConfigDict,
    workdir: str | os.PathLike,
    which: Mapping[str, Any] = NEWEST,
    mesh: Mesh | None = None,
) -> tuple[int, Any]:
    """(step, float32 parameters) of the newest verified checkpoint, over `mesh`, or that which
    `config` trains on, whatever mesh they were written from.

    Of parameters that were trained in bfloat16 these are the float32 values that they were rounded
    from, and frozen ones come from config.model.path. Adapters are merged into its weights.
    which: load_params' `step` or `best`, for another checkpoint.
    Errors: UserError when there is none, or the model of `config` is another one, or the folder of
    the policy has another config.json, tokenizer, template or image processor than it had then.
    """
    config, workdir = as_config(config), pathlib.Path(workdir)
    path = local_folder(config.model.path)
    check_policy_files(workdir, path)
    model_config = load_model_config(path, config.model.family)
    mesh = mesh or make_mesh(**arguments(make_mesh, config.mesh))
    abstract = abstract_params(model_config, jnp.float32)
    shardings = param_shardings(abstract, mesh)
    lora = lora_of_run(workdir, model_config)
    if lora is None:
        target = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            abstract,
            shardings,
        )
        train = stored_config(read_config(workdir)).train
        if train.param_dtype == "float32":
            return load_params(workdir / "checkpoints", target, **which)
        trained = select(target, trainable_paths(target, train.freeze))
        step, master = load_params(workdir / "checkpoints", trained, "master", **which)
        if len(trained) < len(by_path(target)):
            check_base(workdir, path)
            target = load.load_params(path, model_config, dtype=jnp.float32, shardings=shardings)
        return step, merge(target, master)
    step, adapters = newest_adapters(lora, workdir, path, mesh, which)
    base = load.load_params(path, model_config, dtype=jnp.float32, shardings=shardings)
    return step, merged_params(lora, base, adapters)


def sampling_params(
    config: Config | ConfigDict, workdir: str | os.PathLike, *, alone: bool = False
) -> tuple[int, Any]:
    """(step, parameters in config.model.dtype where load_policy needs them) of the newest verified
    checkpoint of a run: what its export would be loaded as, to sample with; see newest_params.
    alone: as of load_policy.

    They are read as float32, split over all devices of the sampling mesh, and only then, one by
    one, cast and laid out as there: no device ever holds much more than what it will sample with.
    Errors: UserError when `workdir` is no run, or one of another model.
    """
    config, workdir = as_config(config), pathlib.Path(workdir)
    if not steps_in(workdir / "checkpoints"):
        raise UserError(f"{workdir} is no run: it has no checkpoints; run `srpo train` first")
    model_config = load_model_config(local_folder(config.model.path), config.model.family)
    dtype = jnp.dtype(config.model.dtype)
    mesh = sampling_mesh(config, model_config, alone=alone)
    if mesh is None:
        mesh = make_mesh(devices=jax.local_devices()[:1])
    abstract = abstract_params(model_config, dtype)
    step, params = newest_params(config, workdir, mesh=_finest(mesh, abstract))
    leaves, structure = jax.tree.flatten(params)
    del params
    for i, sharding in enumerate(jax.tree.leaves(param_shardings(abstract, mesh))):
        leaves[i] = jax.device_put(leaves[i].astype(dtype), sharding)  # frees the float32 array
    return step, jax.tree.unflatten(structure, leaves)


def _finest(mesh: Mesh, abstract: Any) -> Mesh:
    """The same devices with fsdp in the place of data, if the parameters divide so."""
    data, fsdp, tensor = mesh.devices.shape
    finer = Mesh(mesh.devices.reshape(1, data * fsdp, tensor), mesh.axis_names)
    try:
        param_shardings(abstract, finer)
    except UserError:
        return mesh
    return finer


def lora_of_run(workdir: pathlib.Path, model_config: Any) -> Lora | None:
    """The adapters that the run of a workdir trained: by its own config, whatever one is used now,
    because a checkpoint does not say how much its adapters count."""
    config = stored_config(read_config(workdir))
    return make_lora(config.lora, config.seed, model_config)


def newest_adapters(
    lora: Lora, workdir: pathlib.Path, base: str, mesh: Any, which: Mapping[str, Any] = NEWEST
) -> tuple[int, Any]:
    """(step, adapters, whole on every device) of the newest verified checkpoint, or of `which`.

    Errors: UserError when there is none, or the weights in the folder `base` are not those that
    the adapters were trained on.
    """
    check_base(workdir, base)
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        jax.eval_shape(lambda: init_adapters(lora)),
    )
    return load_params(workdir / "checkpoints", target, **which)


def check_base(workdir: pathlib.Path, base: str) -> None:
    """UserError if config.json or the weights in the folder `base` are not those that the run of
    the workdir began with: they are what the export is cut after."""
    was = (read_json(workdir / "config.json").get("run") or {}).get("model weights")
    now = policy_digest(base)
    if was != now:
        raise UserError(
            f"{base} holds other weights ({now}) than those that {workdir} was trained from "
            f"({was}); put them back, or give that policy with --config.model.path"
        )


def export(
    workdir: str | os.PathLike,
    out: str | os.PathLike,
    *,
    form: str = "merged",
    verify: bool = False,
    step: str = "",
    bake_prompt: str = "",
    allow_nonfinite: bool = False,
) -> pathlib.Path:
    """Writes the folder `out` (complete or not at all, with a list of its files' digests) and
    returns it.

    form: "merged" is a whole model; "peft" is the adapters of a run with LoRA alone. verify: read
    it back, compare what it computes (verify.py), and print the result. step: a number, "best"
    by the run's train.best_metric, or "" for the newest. bake_prompt: "prompt" or "reply_only"
    writes the run's prompt into the chat template, see baked_prompt.py. allow_nonfinite: write
    NaN and infinite numbers, too.
    Errors: UserError; export.verify.Mismatch, and then there is no folder.

    Example:
        folder = srpo_jax.export("runs/mini", "runs/mini/export", step="best", verify=True)
    """
    if form not in FORMS:
        raise UserError(f"--format={form}: there is {', '.join(FORMS)}")
    if verify and (form == "peft" or jax.process_count() > 1):
        raise UserError("--verify needs --format=merged and a single process")
    workdir, out = pathlib.Path(workdir), pathlib.Path(out)
    stored = read_config(workdir)
    if not stored:
        raise UserError(f"{workdir} has no config.json: run `srpo train` first")
    config = stored_config(stored)
    which = _which(step, config.train.best_metric)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; remove it or give another --out")
    check_folder(out.parent)
    source = local_folder(config.model.path)
    check_policy_files(workdir, source)
    model_config = load_model_config(source, config.model.family)
    asking = _asking(config, workdir, bake_prompt, form) if bake_prompt else None
    lora = lora_of_run(workdir, model_config)

    def finish(params: Any) -> dict[str, Any]:
        check = verifying(params, source, model_config) if verify else None
        if asking is not None:
            check = baking(asking.encoder, asking.form, bake_prompt, check)
        if config.data.max_pixels:
            check = limiting(source, model_config, config.data.max_pixels, check)
        return {"check": _listing(check), "allow_nonfinite": allow_nonfinite}

    if lora is None:
        if form == "peft":
            raise UserError(
                f"{workdir} was trained without LoRA: there are no adapters to write, export it "
                "with --format=merged"
            )
        check_base(workdir, source)
        found, params = newest_params(config, workdir, which)
        card = model_card(workdir, stored, found, bake_prompt=bake_prompt)
        export_checkpoint(params, source, out, model_config, model_card=card, **finish(params))
        return out
    mesh = make_mesh(**arguments(make_mesh, config.mesh))
    found, adapters = newest_adapters(lora, workdir, source, mesh, which)
    adapters = {path: np.asarray(leaf) for path, leaf in by_path(adapters).items()}
    card = model_card(workdir, stored, found, form, bake_prompt)
    if form == "peft":
        settings = lora.peft_settings()
        done = {"check": write_digests, "allow_nonfinite": allow_nonfinite, "model_card": card}
        export_adapters(adapters, source, out, model_config, settings=settings, **done)
    else:
        values = merging(lora, adapters)
        export_checkpoint(values, source, out, model_config, model_card=card, **finish(values))
    return out


def _listing(then: Callable[[pathlib.Path], None] | None) -> Callable[[pathlib.Path], None]:
    """What an export does last with its complete folder: the check `then`, and the digests."""

    def run(folder: pathlib.Path) -> None:
        if then is not None:
            then(folder)
        write_digests(folder)

    return run


def _asking(config: Config, workdir: pathlib.Path, mode: str, form: str) -> Asking:
    """How the run asked its questions. UserError if that cannot be baked, or is not known now."""
    if form != "merged":
        raise UserError("--bake_prompt needs --format=merged: adapters come without a template")
    bare = config.prompt.train == "bare"
    asking = load_asking(config, local_folder(config.model.path), config.model.family, bare=bare)
    check_bakeable(asking.encoder, mode)
    was = (read_json(workdir / "config.json").get("run") or {}).get(PROMPT)
    if was not in (None, asking.digest):
        raise UserError(
            f"--bake_prompt: the prompt of the run was {was}, that of its config is now "
            f"{asking.digest}; put prompt.demos and the files of {config.model.path} back"
        )
    return asking


def _which(step: str, best_metric: str) -> dict[str, Any]:
    """load_params' choice for --step."""
    if step == "best":
        return {"best": best_metric}
    if step and not step.isdecimal():
        raise UserError(f"--step={step}: must be a step's number, or best")
    return {"step": int(step)} if step else {}


def verifying(params: Any, source: str, model_config: Any) -> Callable[[pathlib.Path], None]:
    """The check of an export of `params`: says what was compared, or raises verify.Mismatch."""
    from srpo_jax.export.verify import verify

    return lambda folder: print(f"verified: {verify(folder, source, params, model_config)}")
