"""srpo_jax/export/peft.py: `peft` puts our adapters where we had them, in every family."""

from __future__ import annotations

import json
import re
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from srpo_jax.config.sections import LoraSettings
from srpo_jax.errors import UserError
from srpo_jax.export.hf_checkpoint import export_checkpoint
from srpo_jax.export.peft import export_adapters
from srpo_jax.models.blocks.param_paths import by_path
from srpo_jax.models.hf import tensor_match as names
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.inputs import causal_row, pad_rows
from srpo_jax.models.policy_model import abstract_params, head_matrix
from srpo_jax.models.registry import FAMILIES
from srpo_jax.train import lora
from tests.support.families import CASES, Loaded, compile_fast, oracle

ANSWERS = ([31, 32, 33, 34], [35], [36, 37, 38])
EVERYWHERE = ("layers/.*/kernel", "vision/.*/kernel")


class Adapted(Loaded):
    """A checkpoint, and random adapters on every kernel that takes them."""

    def __init__(self, case, folder, use_rslora=False):
        super().__init__(case, folder)
        section = LoraSettings(3, 4.5, use_rslora, dropout=0.1, targets=EVERYWHERE)
        self.lora = lora.make_lora(section, 0, self.config)
        rng = np.random.default_rng(0)
        self.adapters = jax.tree.map(
            lambda x: (0.1 * rng.standard_normal(x.shape)).astype(np.float32),
            jax.eval_shape(lambda: lora.init_adapters(self.lora)),
        )
        self.flat = by_path(self.adapters)

    def adapted_logits(self) -> list[np.ndarray]:
        """As `logits`, with the adapters beside the weights."""
        rows = [causal_row(p, c) for p, c in zip(self.prompts, ANSWERS, strict=True)]
        batch = pad_rows(rows, **self.room(max(map(len, ANSWERS))))

        @compile_fast
        def run(params, adapters, batch):
            weights = {"params": params, "lora": lora.variables(self.lora, adapters)}
            return self.model.apply(weights, batch) @ head_matrix(params, self.config)

        found = np.asarray(run(self.params, self.adapters, batch))
        vocab = self.config.text.vocab_size
        return [rows[: len(r["tokens"]), :vocab] for rows, r in zip(found, rows)]

    def export_adapters(self, out):
        settings = self.lora.peft_settings()
        card = "# card\n"
        export_adapters(
            self.flat, self.folder, out, self.config, settings=settings, model_card=card
        )
        return out


@pytest.fixture(scope="module", params=CASES)
def adapted(request, tmp_path_factory):
    case = CASES[request.param]
    return Adapted(case, case.make(tmp_path_factory.mktemp(case.name) / "model"))


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b[:, : a.shape[1]], atol=1e-4, rtol=0)


def test_every_kernel_takes_an_adapter_but_the_head(adapted):
    """Those of the decoder, of the tower's blocks, of its patches and projectors; each knows how
    its axes split into inputs and outputs, as the table of tensors does.
    """
    kernels = {path for path in by_path(abstract_params(adapted.config)) if path.endswith("kernel")}
    assert {path + "/kernel" for path in adapted.lora.sites} == kernels - {"lm_head/kernel"}
    for entry in names.table(adapted.config):
        path = (entry.param or "").removesuffix("/kernel")
        if path not in adapted.lora.sites:
            continue
        site = adapted.lora.sites[path]
        assert site.stack == site.shared == (() if entry.layers is None else (entry.layers,))
        assert int(np.prod(site.outer)) == entry.disk[0]
        assert int(np.prod(site.inner)) == int(np.prod(entry.disk[1:]))


def test_the_merged_export_computes_what_the_adapters_do(adapted, tmp_path):
    """Every logit to 1e-4 by our own forward; the adapters change them by far more. What is no
    target keeps its bytes.
    """
    ours = adapted.adapted_logits()
    assert min(np.abs(a - b).max() for a, b in zip(ours, adapted.logits(ANSWERS))) > 0.1
    out = tmp_path / "out"
    export_checkpoint(lora.merging(adapted.lora, adapted.flat), adapted.folder, out, adapted.config)
    params = load_params(out, adapted.config, dtype=np.float32)
    close(adapted.logits(ANSWERS, params), ours)
    for (path, new), old in zip(by_path(params).items(), by_path(adapted.params).values()):
        assert (new == old).all() != (path.removesuffix("/kernel") in adapted.lora.sites), path
    copies = jax.tree.map(lambda x: x.copy(), adapted.params)
    on_device = lora.merged_params(adapted.lora, copies, adapted.adapters)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(on_device), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6)


def test_peft_computes_what_the_adapters_do(adapted, tmp_path):
    """peft on transformers' model: exactly our modules get adapters, every tensor finds its place,
    and every logit is ours to 1e-4.
    """
    peft = pytest.importorskip("peft")
    pytest.importorskip("torch")
    out = adapted.export_adapters(tmp_path / "out")
    stored = load_file(out / "adapter_model.safetensors")
    oracle.cache_clear()  # peft changes the model that it is given
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys|.*unexpected")
            model = peft.PeftModel.from_pretrained(oracle(adapted.folder), str(out)).eval()
        loaded = peft.get_peft_model_state_dict(model)
        assert loaded.keys() == stored.keys() and len(stored) > 40
        assert all((loaded[name].numpy() == stored[name]).all() for name in stored)
        close(adapted.adapted_logits(), adapted.oracle_logits(ANSWERS))
    finally:
        oracle.cache_clear()


def test_the_folder_says_what_peft_needs_and_no_path(tmp_path):
    """rsLoRA and a fraction as alpha come through; nothing is overwritten; nothing is left behind
    by an export that failed.
    """
    peft = pytest.importorskip("peft")
    case = CASES["qwen2_5_vl"]
    adapted = Adapted(case, case.make(tmp_path / "base"), use_rslora=True)
    out = adapted.export_adapters(tmp_path / "out")
    text = (out / "adapter_config.json").read_text()
    assert str(tmp_path) not in text and json.loads(text)["base_model_name_or_path"] == "base"
    config = peft.LoraConfig.from_pretrained(out)
    assert (config.r, config.lora_alpha, config.use_rslora) == (3, 4.5, True)
    assert config.lora_dropout == 0.1 and "model.visual.merger.mlp.2" in config.target_modules
    assert len(config.target_modules) == 2 * 7 + 3 * 5 + 3
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    for taken in (out, adapted.folder / "adapter"):
        with pytest.raises(UserError):
            adapted.export_adapters(taken)
    adapted.flat = dict(list(adapted.flat.items())[:1])
    with pytest.raises(KeyError):
        adapted.export_adapters(tmp_path / "broken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "out"]


def test_names_in_memory_are_plain_starts():
    starts = [start for family in FAMILIES.values() for start, _ in family.in_memory]
    assert starts and not any(re.search(r"[\\^$]", start) for start in starts)
