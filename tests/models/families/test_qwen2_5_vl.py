"""Qwen2.5-VL against transformers, cached decoding against recomputation, trees against paths."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.models.attention.xla import write_own
from srpo_jax.models.hf.load import load_params
from srpo_jax.models.inputs import causal_row, encode_prompt, pad_rows
from srpo_jax.models.policy_model import PolicyModel, abstract_params, head_matrix, init_params
from srpo_jax.models.registry import load_model_config
from tests.support.tiny import IDS, LAYERS, picture, tiny_qwen2_5_vl

START, PAD, END = IDS["<|vision_start|>"], IDS["<|image_pad|>"], IDS["<|vision_end|>"]
TOKENS, PATCHES = 80, 200
# Compiling is most of the time of these tests; this halves it and changes no promise.
compile_fast = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Tiny:
    """A checkpoint, its parameters, and three rows: two ragged images, one image, text alone."""

    def __init__(self, folder, tied=True):
        self.folder = tiny_qwen2_5_vl(folder, tied=tied)
        self.config = load_model_config(folder)
        self.params = load_params(folder, self.config)
        self.prompts = [
            self.prompt([5, 6], (196, 140), (112, 84)),
            self.prompt([9], (84, 140)),
            self.prompt([11, 12, 13, 14, 15, 16]),
        ]

    def prompt(self, text, *sizes):
        tokens, images = list(text), []
        for number, size in enumerate(sizes):
            patches, grid = self.processed(size, number)
            images.append((patches, grid))
            tokens += [START, *[PAD] * (len(patches) // 4), END]
        return encode_prompt([*tokens, 21, 22], images, self.config)

    @functools.cache  # noqa: B019, lives as long as the module's fixture
    def processed(self, size, seed):
        """Pixel rows and grid of transformers' own image processor."""
        module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
        processor = module.Qwen2VLImageProcessorPil.from_pretrained(self.folder)
        out = processor(images=[picture(*size, seed=seed)], return_tensors="np")
        return out["pixel_values"], tuple(int(x) for x in out["image_grid_thw"][0])

    @property
    def images(self):
        return [
            self.processed((196, 140), 0),
            self.processed((112, 84), 1),
            self.processed((84, 140), 0),
        ]

    def rows(self, *continuations, tokens=TOKENS, patches=PATCHES):
        rows = [causal_row(p, c) for p, c in zip(self.prompts, continuations, strict=True)]
        return pad_rows(rows, tokens=tokens, patches=patches)

    def apply(self, *args, method=None, dtype=jnp.float32):
        return self.compiled(method, dtype)({"params": self.params}, *args)

    @functools.cache  # noqa: B019, as above
    def compiled(self, method, dtype):
        return compile_fast(functools.partial(PolicyModel(self.config, dtype).apply, method=method))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return Tiny(tmp_path_factory.mktemp("tied"))


ANSWERS = [[30, 31, 32], [40, 41, 42, 43, 44], [50]]


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_transformers(tied, tmp_path):
    """The same checkpoint and images give transformers' logits to 1e-4 in float32.

    1e-3 would let a wrong activation in the vision tower pass.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tiny = Tiny(tmp_path, tied)
    batch = tiny.rows(*ANSWERS)
    real = batch["subtree_end"] != np.arange(1, TOKENS + 1)
    real[np.arange(3), [len(p.tokens) + len(a) - 1 for p, a in zip(tiny.prompts, ANSWERS)]] = True
    ids = torch.tensor(batch["tokens"], dtype=torch.long)
    oracle = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        expected = oracle(
            input_ids=ids,
            attention_mask=torch.tensor(real).long(),
            mm_token_type_ids=(ids == PAD).int(),
            pixel_values=torch.tensor(np.concatenate([p for p, _ in tiny.images])),
            image_grid_thw=torch.tensor([g for _, g in tiny.images]),
        ).logits.numpy()
    hidden = tiny.apply(batch)
    logits = np.asarray(hidden @ head_matrix(tiny.params, tiny.config))
    assert real.sum(1).tolist() == [len(p.tokens) + len(a) for p, a in zip(tiny.prompts, ANSWERS)]
    assert expected[real].std() > 1.0  # random enough for the tolerance to mean something
    assert np.abs(logits - expected)[real].max() <= 1e-4
    assert np.isfinite(logits).all()


def test_padding_changes_nothing(tiny):
    """More padding tokens and patches, or another row beside it, leave a row's values alone."""
    small = tiny.apply(tiny.rows(*ANSWERS))
    large = tiny.apply(tiny.rows(*ANSWERS, tokens=TOKENS + 16, patches=PATCHES + 48))
    for row, (prompt, answer) in enumerate(zip(tiny.prompts, ANSWERS)):
        n = len(prompt.tokens) + len(answer)
        np.testing.assert_allclose(small[row, :n], large[row, :n], atol=1e-5)
    empty = {k: np.zeros_like(v) for k, v in tiny.rows(*ANSWERS).items()}
    empty |= {k: np.full_like(empty[k], -1) for k in ("image_index", "window_seg", "full_seg")}
    empty["subtree_end"] += np.arange(1, TOKENS + 1, dtype=np.int32)
    assert np.isfinite(tiny.apply(empty)).all()  # a row of nothing but padding


def test_cached_decoding_equals_recomputation(tiny):
    """Branches that share one prefilled row decode to what a full forward of each path gives."""
    rng = np.random.default_rng(0)
    paths = [rng.integers(1, 360, n) for n in (6, 5, 7)]
    kept = np.array([[0, 3, 6], [5, 5, 2], [7, 1, 0]])  # path tokens that each branch keeps
    branches, steps = kept.shape[1], 4
    own_tokens = rng.integers(1, 360, (3, branches, steps))
    before = np.array([len(p.tokens) for p in tiny.prompts])
    shared_len = (before[:, None] + kept).astype(np.int32)
    first = np.array([p.next_position for p in tiny.prompts])[:, None] + kept

    hidden, shared = tiny.apply(tiny.rows(*paths), method="prefill")
    shared = tuple(jnp.swapaxes(part, 2, 3) for part in shared)
    np.testing.assert_array_equal(hidden, tiny.apply(tiny.rows(*paths)))
    text = tiny.config.text
    shape = (LAYERS, 3, branches, text.num_kv_heads, steps + 2, text.head_dim)
    own = (jnp.full(shape, 1e6),) * 2  # shows any read of a cell that was not written yet
    got = []
    for t in range(steps):
        positions = np.repeat((first + t)[:, None, :], 3, axis=1).astype(np.int32)
        tokens = own_tokens[:, :, t].astype(np.int32)
        at = np.full_like(tokens, t)
        out, new = tiny.apply(tokens, positions, shared, shared_len, own, at, method="decode")
        own = tuple(write_own(held, part, at) for held, part in zip(own, new))
        got.append(out)
    got = np.stack(got, axis=2)  # [B, R, steps, D]
    for r in range(branches):
        whole = [[*paths[b][: kept[b, r]], *own_tokens[b, r]] for b in range(3)]
        expected = tiny.apply(tiny.rows(*whole))
        for b in range(3):
            own_part = expected[b, shared_len[b, r] : shared_len[b, r] + steps]
            np.testing.assert_allclose(got[b, r], own_part, atol=1e-5)


def tree_row(tiny):
    """A prompt, then the path 30 31 with a branch 60 61 after 30 and a branch 70 beside it.

    Depth first: prompt, 30, {60 61}, 31, {70}. Returns (row, list of (path, row indices)).
    """
    prompt = tiny.prompts[1]
    n, at = len(prompt.tokens), prompt.next_position
    row = causal_row(prompt, [30, 60, 61, 31, 70])
    row["subtree_end"][n:] = [n + 4, n + 3, n + 3, n + 4, n + 5]
    row["positions"][:, n:] = np.array([at, at + 1, at + 2, at + 1, at])
    return row, [([30, 60, 61], [n, n + 1, n + 2]), ([30, 31], [n, n + 3]), ([70], [n + 4])]


def test_a_tree_row_equals_its_paths(tiny):
    """Every path of a tree gets the hidden states that it gets in a row of its own."""
    row, paths = tree_row(tiny)
    alone = [causal_row(tiny.prompts[1], path) for path, _ in paths]
    hidden = tiny.apply(pad_rows([row, *alone], tokens=TOKENS, patches=PATCHES))
    before = range(len(tiny.prompts[1].tokens))
    for expected, (_, where) in zip(hidden[1:], paths, strict=True):
        indices = np.array([*before, *where])
        np.testing.assert_allclose(hidden[0][indices], expected[: len(indices)], atol=1e-5)


def test_a_token_depends_exactly_on_its_ancestors(tiny):
    """d hidden[i] / d embedding[j] is exactly 0 where the mask says so, and not 0 elsewhere.

    Every token of the row has an id of its own, so row j's embedding is one row of the table.
    """
    n = 10
    row = causal_row(encode_prompt(np.arange(1, n + 1), [], tiny.config))
    ends = np.array([10, 10, 6, 5, 5, 6, 10, 8, 10, 10], np.int32)
    row["subtree_end"] = ends
    batch = pad_rows([row], tokens=n + 1, patches=4)
    model = PolicyModel(tiny.config)
    weight = jnp.asarray(np.random.default_rng(0).standard_normal((n, 64)), jnp.float32)

    def outputs(table):
        params = {**tiny.params, "embed": {"embedding": table}}
        return jnp.sum(model.apply({"params": params}, batch)[0, :n] * weight, axis=-1)

    jacobian = compile_fast(jax.jacrev(outputs))(tiny.params["embed"]["embedding"])
    touched = np.abs(np.asarray(jacobian)).sum(-1) != 0
    i, j = np.indices((n, n))
    assert np.array_equal(touched[:, 1 : n + 1], (j <= i) & (i < ends[j]))
    assert not touched[:, 0].any() and not touched[:, n + 1 :].any()


def test_bfloat16_and_remat_train(tiny):
    """Under jit in bfloat16 with rematerialised layers: near float32, every gradient finite.

    Padding rows and patches are part of the batch, so nothing in them may become NaN.
    """
    batch = tiny.rows(*ANSWERS)

    def run(**fields):
        model = PolicyModel(tiny.config, **fields)

        def loss(params):
            hidden = model.apply({"params": params}, batch)
            return jnp.mean(jnp.sin(hidden.astype(jnp.float32))), hidden

        return compile_fast(jax.value_and_grad(loss, has_aux=True))(tiny.params)

    (_, plain), plain_grads = run()
    (_, again), again_grads = run(remat="full")
    (_, half), half_grads = run(remat="full", dtype=jnp.bfloat16)
    np.testing.assert_allclose(plain, again, atol=1e-5)
    for a, b in zip(jax.tree.leaves(plain_grads), jax.tree.leaves(again_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert half.dtype == jnp.bfloat16
    assert np.abs(np.asarray(half, np.float32) - plain).mean() < 0.05 * np.abs(plain).mean()
    assert all(np.isfinite(g).all() and g.dtype == np.float32 for g in jax.tree.leaves(half_grads))
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(plain_grads))


def test_cache_is_in_the_compute_dtype(tiny):
    """bfloat16 decoding keeps bfloat16 caches: half the memory, and no silent promotion."""

    def shapes(*args, method):
        run = functools.partial(PolicyModel(tiny.config, jnp.bfloat16).apply, method=method)
        return jax.eval_shape(run, {"params": tiny.params}, *args)

    hidden, (k, v) = shapes(tiny.rows(*ANSWERS), method="prefill")
    layers, rows, length, heads, width = k.shape
    shared = (jax.ShapeDtypeStruct((layers, rows, heads, length, width), k.dtype),) * 2
    own = (jax.ShapeDtypeStruct((layers, rows, 2, heads, 4, width), k.dtype),) * 2
    ints = np.ones((3, 2), np.int32), np.ones((3, 3, 2), np.int32)
    step, new = shapes(*ints, shared, ints[0], own, ints[0], method="decode")
    assert {x.dtype for x in (hidden, k, v, step, *new)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.shape for x in new} == {(layers, rows, 2, heads, width)}


def test_parameters_are_a_plain_dict_of_the_stated_paths(tiny):
    """init, eval_shape and the loader agree on paths, shapes and dtypes; no flax type anywhere."""

    def describe(tree):
        return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)

    untied = dataclasses.replace(
        tiny.config, text=dataclasses.replace(tiny.config.text, tie_word_embeddings=False)
    )
    assert describe(tiny.params) == describe(abstract_params(tiny.config))
    model = PolicyModel(untied)
    params = compile_fast(lambda key: init_params(model, key, jnp.bfloat16))(jax.random.key(0))
    assert type(params) is dict and describe(params) == describe(
        abstract_params(untied, jnp.bfloat16)
    )
    assert head_matrix(params, untied).shape == head_matrix(tiny.params, tiny.config).shape
    kernels = np.asarray(params["layers"]["mlp"]["up"]["kernel"], np.float32)
    assert not np.allclose(kernels[0], kernels[1]) and abs(kernels.std() - 0.02) < 0.002
