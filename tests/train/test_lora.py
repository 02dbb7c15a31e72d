"""srpo_jax/train/lora.py, and adapters in the model, the step, the loop and the export."""

from __future__ import annotations

import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from srpo_jax.cli import main as cli
from srpo_jax.config.check import validate
from srpo_jax.configs import common
from srpo_jax.distributed.mesh import make_mesh
from srpo_jax.errors import UserError
from srpo_jax.export import export
from srpo_jax.models.blocks.decoder import Linear
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.policy_model import PolicyModel, abstract_params
from srpo_jax.models.registry import load_model_config
from srpo_jax.train import loop as train_module
from srpo_jax.train import lora
from srpo_jax.train.loop import train
from srpo_jax.train.losses.objective import Objective
from srpo_jax.train.train_step import MODEL_INPUTS
from tests.support import multi_device_run as tiny
from tests.train import test_loop as test_train

world = test_train.world  # its fixture: a tiny model and nine trees
compile_fast = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Tiny:
    """A model, its parameters, a batch, and adapters whose B is not 0."""

    def __init__(self):
        self.config = tiny.tiny_config(tied=False)
        self.params = tiny.random_params(self.config)
        batch = tiny.random_batch(self.config, 0, rows=2)
        names = [*MODEL_INPUTS, *(field.name for field in self.config.vision.fields)]
        self.inputs = {name: batch[name] for name in names}
        self.lora = self.make()
        rng = np.random.default_rng(1)
        self.adapters = jax.tree.map(
            lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32),
            lora.init_adapters(self.lora),
        )

    def make(self, **changes) -> lora.Lora:
        return tiny.tiny_lora(self.config, **changes)

    def hidden(self, params, adapters=None, remat="none"):
        weights = {"params": params} if adapters is None else {"params": params, "lora": adapters}
        return self.compiled(remat)(weights, self.inputs)

    @functools.cache  # noqa: B019, lives as long as the module's fixture
    def compiled(self, remat):
        return compile_fast(PolicyModel(self.config, remat=remat).apply)


@pytest.fixture(scope="module")
def model():
    return Tiny()


def test_new_adapters_change_nothing(model):
    """A is drawn, B is 0: the same hidden states, bit for bit. A is within 1 / sqrt(fan-in)."""
    adapters = lora.init_adapters(model.lora)
    plain, fresh, moved = (
        model.hidden(model.params, given and lora.variables(model.lora, given))
        for given in (None, adapters, model.adapters)
    )
    np.testing.assert_array_equal(plain, fresh)
    assert np.abs(plain - moved).max() > 0.1
    for path, leaf in by_path(adapters).items():
        if path.endswith("lora_b"):
            assert not leaf.any()
            continue
        bound = np.prod(model.lora.sites[path.removesuffix("/lora_a")].inner) ** -0.5
        assert 0.8 * bound < np.abs(leaf).max() <= bound, path
    again = lora.init_adapters(model.make())
    other = lora.init_adapters(model.make(seed=1))
    assert all(map(np.array_equal, jax.tree.leaves(adapters), jax.tree.leaves(again)))
    a, b = adapters["layers"]["mlp"]["up"]["lora_a"], adapters["layers"]["mlp"]["gate"]["lora_a"]
    assert not np.allclose(a, other["layers"]["mlp"]["up"]["lora_a"])
    assert not np.allclose(a, b) and not np.allclose(a[0], a[1])


@pytest.mark.parametrize("use_rslora", [False, True])
def test_values_and_gradients_are_those_of_merged_weights(model, use_rslora):
    """d loss / d A and B through the two thin products, and through kernel + scale A B."""
    spec = model.make(use_rslora=use_rslora)
    assert spec.scale == (4.0 if use_rslora else 2.0)
    network = PolicyModel(model.config)

    def thin(adapters):
        weights = {"params": model.params, "lora": lora.variables(spec, adapters)}
        hidden = network.apply(weights, model.inputs)
        return jnp.sin(hidden).sum(), hidden

    def merged(adapters):
        kernels, leaves = by_path(model.params), by_path(adapters)
        for path in spec.sites:
            kernel = kernels[f"{path}/kernel"]
            a, b = (leaves[f"{path}/{name}"] for name in ("lora_a", "lora_b"))
            cut = a.ndim + b.ndim - 2 - kernel.ndim  # 1 for stacked layers
            flat_a = a.reshape(*a.shape[:cut], -1, 4)
            flat_b = b.reshape(*b.shape[:cut], 4, -1)
            change = (flat_a @ flat_b).reshape(kernel.shape)
            kernels[f"{path}/kernel"] = kernel + spec.scale * change
        params = jax.tree.unflatten(jax.tree.structure(model.params), list(kernels.values()))
        hidden = network.apply({"params": params}, model.inputs)
        return jnp.sin(hidden).sum(), hidden

    (_, mine), grads = compile_fast(jax.value_and_grad(thin, has_aux=True))(model.adapters)
    (_, theirs), wanted = compile_fast(jax.value_and_grad(merged, has_aux=True))(model.adapters)
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
    for (path, grad), want in zip(by_path(grads).items(), by_path(wanted).values(), strict=True):
        assert np.linalg.norm(want) > 1e-3, path
        assert np.linalg.norm(grad - want) <= 1e-5 * np.linalg.norm(want), path
    by_hand = lora.merged_params(spec, jax.tree.map(jnp.array, model.params), model.adapters)
    np.testing.assert_allclose(model.hidden(by_hand), mine, atol=1e-5)


def test_dropout_drops_inputs_of_adapters_alone(model):
    """With A = B = 1 and no kernel a module gives x, or with a key x where it is kept, in the right
    share, and 0 elsewhere; the mean is made good in B.
    """
    one = jnp.eye(64)
    linear = Linear("btD,DF->btF", (64, 64), None, jnp.float32, jnp.float32)
    x = jnp.ones((4, 64, 64))
    own = {"lora_a": one, "lora_b": one}
    params = {"kernel": jnp.zeros((64, 64))}
    np.testing.assert_array_equal(linear.apply({"params": params, "lora": own}, x), x)
    own |= {"dropout": jax.random.key(0), "keep": jnp.float32(0.75)}
    y = np.asarray(linear.apply({"params": params, "lora": own}, x))
    assert set(np.unique(y)) == {0, 1} and abs(y.mean() - 0.75) < 0.01
    spec = model.make(dropout=0.2)
    whole, masked = (
        by_path(lora.variables(spec, model.adapters, key)) for key in (None, jax.random.key(0))
    )
    for path in whole:
        factor = 1 / 0.8 if path.endswith("lora_b") else 1
        np.testing.assert_allclose(masked[path], whole[path] * factor, rtol=1e-6)


def test_masks_are_a_function_of_seed_step_slice_module_and_layer(model):
    """Drawn again they are the same, also when layers are rematerialised; any other argument gives
    others; no two modules and no two layers share theirs.
    """

    def run(remat="none", part=0, step=5, **changes):
        spec = model.make(dropout=0.2, **changes)
        key = lora.dropout_key(spec, jnp.int32(step), part)
        return model.hidden(model.params, lora.variables(spec, model.adapters, key), remat)

    first = run()
    np.testing.assert_array_equal(first, run())
    np.testing.assert_array_equal(first, run(remat="full"))
    for other in (dict(step=6), dict(part=1), dict(seed=1)):
        assert np.abs(first - run(**other)).max() > 1e-2, other
    spec = model.make(dropout=0.2)
    tree = by_path(lora.variables(spec, model.adapters, lora.dropout_key(spec, jnp.int32(0))))
    keys = [jax.random.key_data(k).reshape(-1, 2) for p, k in tree.items() if p.endswith("dropout")]
    assert len(np.unique(np.concatenate(keys), axis=0)) == sum(map(len, keys)) > 20
    assert lora.dropout_key(model.lora, jnp.int32(0)) is None


def test_bfloat16_stays_bfloat16(model):
    """The computation keeps its dtype beside float32 adapters, whose gradients are float32."""
    spec = model.make(dropout=0.2)
    network = PolicyModel(model.config, dtype=jnp.bfloat16)

    def loss(adapters):
        own = lora.variables(spec, adapters, lora.dropout_key(spec, jnp.int32(0)))
        hidden = network.apply({"params": model.params, "lora": own}, model.inputs)
        return hidden.astype(jnp.float32).sum(), hidden

    grads, hidden = jax.eval_shape(jax.grad(loss, has_aux=True), model.adapters)
    assert hidden.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_only_targets_get_adapters(model):
    """The tree has A and B of what the patterns match, shaped like the kernel, and nothing else."""
    spec = model.make(targets=("layers/attn/[qo]/kernel", "vision/merger/fc2/kernel"))
    shapes = {path: x.shape for path, x in by_path(lora.init_adapters(spec)).items()}
    assert shapes == {
        "layers/attn/o/lora_a": (2, 4, 8, 4),
        "layers/attn/o/lora_b": (2, 4, 32),
        "layers/attn/q/lora_a": (2, 32, 4),
        "layers/attn/q/lora_b": (2, 4, 4, 8),
        "vision/merger/fc2/lora_a": (128, 4),
        "vision/merger/fc2/lora_b": (4, 32),
    }
    assert model.make(rank=0, targets=("nothing",)) is None
    for pattern, said in (
        ("layers/attn/q", "matches no parameter"),
        ("layers/.*", "layers/attn/k/bias, which takes no adapter"),
        ("embed/embedding", "embed/embedding, which takes no adapter"),
        ("lm_head/kernel", "lm_head/kernel, which takes no adapter"),
    ):
        with pytest.raises(UserError, match=said):
            model.make(targets=("layers/.*/kernel", pattern))


def test_config_errors_are_one_line():
    """Freezing and adapters, adapters on nothing, numbers out of range."""
    for changes, said in (
        ({"train.freeze": ("vision/.*",)}, "exclude each other"),
        ({"lora.targets": ()}, "lora.targets is empty"),
        ({"lora.dropout": 1.0}, "lora.dropout is 1.0"),
        ({"lora.alpha": 0.0}, "lora.alpha is 0.0"),
        ({"lora.targets": ("(",)}, "regular expressions"),
        ({"lora.base_dtype": "float16"}, "base_dtype"),
    ):
        config = common.get_config()
        config.model.path = config.data.train_records = config.data.test_records = "x"
        config.arbiter.kind, config.lora.rank = "rules", 4
        config.update_from_flattened_dict(changes)
        with pytest.raises(UserError, match=said) as error:
            validate(config)
        assert "\n" not in str(error.value)


def test_the_step_trains_adapters_and_nothing_else(model):
    """Moments, gradient norm and updates are the adapters'; the base stays bit for bit, in its own
    dtype; slices of a batch change nothing without dropout, and draw masks of their own with it.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    found = []
    for accumulate, dropout in ((1, 0.0), (4, 0.0), (4, 0.3)):
        spec = model.make(dropout=dropout, targets=("layers/.*/kernel",))
        state, step = tiny.start(model.config, mesh, accumulate=accumulate, lora=spec)
        sizes = {x.shape for x in jax.tree.leaves(state.params)}
        assert {x.shape for x in jax.tree.leaves(state.opt_state)} == sizes | {()}
        before = jax.device_get(state.base)
        for seed in (0, 1, 2):
            state, metrics = step(state, tiny.random_batch(model.config, seed))
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.base), before)
        assert all(x.any() for x in jax.tree.leaves(state.params))
        found.append(jax.device_get((metrics, state.params)))
    (once, params), (sliced, same), (dropped, _) = found
    assert abs(once["loss"] - sliced["loss"]) < 1e-5 * abs(once["loss"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params, same)
    assert abs(once["loss"] - dropped["loss"]) > 1e-5


@pytest.mark.slow
def test_dpo_compares_with_the_policy_without_adapters(model):
    """The base is the reference policy: margins are 0 until the first update, no weight is held
    twice, and the loss goes down.
    """
    state, step = tiny.start(
        model.config,
        make_mesh(devices=jax.devices()[:1]),
        objective=Objective(contrast="dpo", normalise="sum", ref_coef=0.0, lambda_exp=1.0),
        lora=model.lora,
    )
    assert jax.tree.structure(state.base) == jax.tree.structure(abstract_params(model.config))
    held = sum(x.size for x in jax.tree.leaves(state._replace(opt_state=None)))
    assert held == 1 + sum(x.size for x in jax.tree.leaves((model.params, model.adapters)))
    batch, margins, losses = tiny.random_batch(model.config, 0), [], []
    for _ in range(3):
        state, metrics = step(state, batch)
        margins.append(float(metrics["rewards/margins"]))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[0], np.log(2) * batch["pair_weight"].sum(), rtol=1e-5)
    assert abs(margins[0]) < 1e-5 and margins[-1] > 1e-3 and losses[-1] < losses[0]


def make_config(world, **changes):
    """Of a run with dropout on a bfloat16 base, DPO without a reference copy."""
    config = test_train.make_config(world, accumulate=2)
    values = dict(rank=2, alpha=4.0, dropout=0.1, base_dtype="bfloat16")
    for name, value in {**values, **changes}.items():
        config.lora[name] = value
    return config


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory):
    """The workdir of a run that nobody stopped."""
    workdir = tmp_path_factory.mktemp("lora") / "run"
    summary = train(make_config(world), workdir)
    assert summary["step"] == test_train.STEPS
    return workdir


def stored_arrays(workdir) -> dict[str, list]:
    """{path: [shape, dtype, checksum]} of the newest checkpoint."""
    meta = workdir / "checkpoints" / str(test_train.STEPS) / "meta" / "metadata"
    arrays = json.loads(meta.read_text())["arrays"]
    return {**arrays["params"], **arrays["optimizer"]}


def test_a_checkpoint_holds_adapters_only(straight):
    """Parameters are A and B in float32, moments two of each: none of the base's weights, so the
    folder is small. Loss goes down.
    """
    arrays = stored_arrays(straight)
    assert all(path.endswith(("lora_a", "lora_b", "count", "step")) for path in arrays)
    assert sum(path.endswith("lora_a") for path in arrays) == 3 * 7
    assert {facts[1] for facts in arrays.values()} == {"float32", "int32"}
    rows = test_train.rows(straight)
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[0]["grad_norm"] > 0


def test_a_stopped_run_is_bitwise_the_same(world, straight, tmp_path, capfd, monkeypatch):
    """With dropout: SIGTERM in step 3, then the same command again; arrays and metrics are those of
    the run that was not stopped. The headline says what is trained.
    """
    put, calls = train_module.put_batch, []

    def stop_in_the_third(batch, mesh):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return put(batch, mesh)

    monkeypatch.setattr(train_module, "put_batch", stop_in_the_third)
    with pytest.raises(SystemExit):
        train(make_config(world), tmp_path)
    said = capfd.readouterr().out
    assert "train: 3712 of 0.18M parameters (LoRA of rank 2 on 7 kinds of kernel)" in said
    assert train(make_config(world), tmp_path)["started_at"] == 3
    assert stored_arrays(tmp_path) == stored_arrays(straight)
    assert test_train.without_times(test_train.rows(tmp_path)) == test_train.without_times(
        test_train.rows(straight)
    )


def test_other_adapters_are_another_run(world, straight):
    """What decides the adapters decides the run, with dropout the slices too."""
    config = make_config(world, alpha=8.0, targets=("layers/mlp/.*/kernel",), base_dtype="float32")
    config.train.accumulate = 1
    with pytest.raises(UserError, match="another run") as error:
        train(config, straight)
    for name in ("lora.alpha was 4.0, now 8.0", "lora.targets", "lora.base_dtype", "accumulate"):
        assert name in str(error.value)
    with pytest.raises(UserError, match="lora.rank was 2"):
        train(test_train.make_config(world), straight)


def test_evaluation_uses_the_merged_weights(world, straight):
    """By the run's own adapters and numbers, whatever the config at hand says; kernels that are no
    target are the base's, in float32. Another base is refused.
    """
    config = test_train.make_config(world)
    step, params = export.newest_params(config, straight)
    base = load_params(config.model.path, load_model_config(config.model.path), dtype=np.float32)
    assert step == test_train.STEPS
    moved = {
        path
        for (path, new), old in zip(by_path(params).items(), by_path(base).values(), strict=True)
        if (new != old).any()
    }
    assert moved == {p for p in by_path(base) if p.startswith("layers/") and p.endswith("kernel")}
    other = test_train.tiny_qwen2_5_vl(world / "other", seed=1)
    config.model.path = str(other)
    with pytest.raises(UserError, match="holds other weights") as error:
        export.newest_params(config, straight)
    assert "\n" not in str(error.value)


def test_a_full_run_has_no_adapters_to_export(world, straight, tmp_path, capsys):
    """--format=peft after full training, and a format that there is not: one line, exit code 2."""
    stored = json.loads((straight / "config.json").read_text())
    stored["config"]["lora"]["rank"] = 0
    (tmp_path / "config.json").write_text(json.dumps(stored))
    for form, said in (("peft", "trained without LoRA"), ("gguf", "there is merged, peft")):
        assert cli.main(["export", f"--workdir={tmp_path}", f"--format={form}"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and said in err and err.count("\n") == 1


def test_both_exports_of_a_run(world, straight, tmp_path, capsys):
    """merged is a whole model that differs in its targets alone; peft is small, under the names of
    the model in memory; both have a card that says what they are and no path of this machine.
    """
    for form in ("merged", "peft"):
        argv = ["export", f"--workdir={straight}", f"--format={form}", f"--out={tmp_path}/{form}"]
        assert cli.main(argv) == 0, capsys.readouterr().err
        card = (tmp_path / form / "README.md").read_text()
        assert "LoRA of rank 2, alpha 4, on `layers/.*/kernel`" in card
        assert str(world.parent) not in card and ("library_name: peft" in card) == (form == "peft")
    old, new = (load_file(f / "model.safetensors") for f in (world / "model", tmp_path / "merged"))
    _, params = export.newest_params(test_train.make_config(world), straight)
    for name, value in new.items():
        target = "layers" in name and "_proj.weight" in name
        assert (value == old[name]).all() != target, name
    up = params["layers"]["mlp"]["up"]["kernel"][1].T
    np.testing.assert_allclose(new["model.layers.1.mlp.up_proj.weight"], up, atol=1e-7)
    adapters = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert len(adapters) == 2 * 7 * 2
    name = "base_model.model.model.language_model.layers.1.self_attn.o_proj.lora_A.weight"
    assert adapters[name].shape == (2, 64) and adapters[name].any()
