"""Window order, M-RoPE positions and padded rows, against transformers and by hand."""

import numpy as np
import pytest

from srpo_jax.errors import UserError
from srpo_jax.models.blocks.qwen_positions import mrope_positions
from srpo_jax.models.families.qwen2_5_vl.model import image_layout
from srpo_jax.models.inputs import causal_row, encode_prompt, pad_rows
from srpo_jax.models.registry import load_model_config
from tests.support.tiny import IDS, picture, tiny_qwen2_5_vl

START, PAD, END = IDS["<|vision_start|>"], IDS["<|image_pad|>"], IDS["<|vision_end|>"]
GRIDS = [(1, 10, 14), (1, 6, 8), (1, 2, 2), (1, 4, 4), (2, 6, 10), (1, 2, 30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen2_5_vl(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model_config(folder):
    return load_model_config(folder)


def tokens_of(grids, model_config):
    """Some text, each image in its markers, some text."""
    out = [1, 2]
    for frames, rows, cols in grids:
        out += [START, *[PAD] * (frames * rows * cols // 4), END]
    return np.array([*out, 3, 4, 5], np.int32)


def fake_images(grids, model_config):
    """Patches that carry their own row number in the processor's order."""
    dim = model_config.vision.patch_dim
    return [(np.repeat(np.arange(np.prod(g), dtype=np.float32)[:, None], dim, 1), g) for g in grids]


@pytest.mark.parametrize("grid", GRIDS)
def test_window_order_is_that_of_transformers(grid, model_config):
    """Order, windows and positions equal those that transformers computes, ragged edges too."""
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("transformers.vision_utils")
    vision, thw = model_config.vision, torch.tensor([grid])
    index, ends = reference.get_vision_window_index(
        thw, vision.spatial_merge_size, vision.window_size, vision.patch_size
    )
    layout = image_layout(grid, model_config)
    assert np.array_equal(layout.order.reshape(-1, 4)[:, 0] // 4, index.numpy())
    assert np.array_equal(np.sort(layout.order), np.arange(np.prod(grid)))
    assert np.array_equal(np.bincount(layout.fields["window_seg"]), np.diff(ends.numpy()))
    assert np.all(np.diff(layout.fields["window_seg"]) >= 0)
    positions = reference.get_vision_position_ids(thw, vision.spatial_merge_size).numpy()
    assert np.array_equal(layout.fields["patch_pos"], positions[layout.order])
    assert np.array_equal(layout.fields["full_seg"], layout.order // (grid[1] * grid[2]))
    assert np.array_equal(index.numpy()[layout.token_index], np.arange(np.prod(grid) // 4))


@pytest.mark.parametrize("grids", [[], GRIDS[:1], GRIDS[:3], GRIDS])
def test_positions_are_those_of_transformers(grids, folder, model_config):
    """M-RoPE positions, and the position after the prompt, equal get_rope_index."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokens = tokens_of(grids, model_config)
    with torch.device("meta"):
        hf_config = transformers.AutoConfig.from_pretrained(folder)
        model = transformers.Qwen2_5_VLForConditionalGeneration(hf_config).model
    ids = torch.tensor(tokens)[None]
    expected, delta = model.get_rope_index(
        ids, (ids == PAD).int(), image_grid_thw=torch.tensor(grids) if grids else None
    )
    positions, after = mrope_positions(tokens, grids, model_config)
    assert np.array_equal(positions, expected[:, 0].numpy()) and positions.dtype == np.int32
    assert after == len(tokens) + int(delta)


def test_a_placeholder_shows_its_own_patches(model_config):
    """Placeholder j of an image points at the four processor rows 4j .. 4j + 3 of that image."""
    grids = GRIDS[:3]
    prompt = encode_prompt(
        tokens_of(grids, model_config), fake_images(grids, model_config), model_config
    )
    shown = prompt.image_index[prompt.tokens == PAD]
    rows = prompt.patches[:, 0].reshape(-1, 4)[shown]
    expected = [np.arange(np.prod(g)).reshape(-1, 4) for g in grids]
    assert np.array_equal(rows, np.concatenate(expected))
    assert np.all(prompt.image_index[prompt.tokens != PAD] == -1)
    # No window and no frame is shared between images.
    image = np.repeat(np.arange(3), [np.prod(g) for g in grids])
    for seg in (prompt.vision["window_seg"], prompt.vision["full_seg"]):
        assert len(np.unique(np.stack([seg, image]), axis=1).T) == len(np.unique(seg))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: np.delete(t, 5), "needs 35"),
        (lambda t: t[t != PAD], "0 runs of image placeholders but 2 images"),
        (lambda t: t[(t != START) & (t != END)], "1 runs"),
        (lambda t: np.append(t, IDS["<|video_pad|>"]), "video"),
        (lambda t: t[:0], "at least one token"),
    ],
)
def test_placeholders_that_disagree_with_images_are_refused(edit, message, model_config):
    """Image spans are never guessed: a count that does not fit is an error."""
    grids = GRIDS[:2]
    tokens = edit(tokens_of(grids, model_config))
    with pytest.raises(UserError, match=message):
        encode_prompt(tokens, fake_images(grids, model_config), model_config)


def test_patches_that_disagree_with_their_grid_are_refused(model_config):
    """A patch array of the wrong size names the image and both shapes."""
    (patches, grid), tokens = fake_images(GRIDS[:1], model_config)[0], tokens_of(GRIDS[:1], None)
    with pytest.raises(UserError, match=r"image 0: patches have shape \(139, 1176\)"):
        encode_prompt(tokens, [(patches[:-1], grid)], model_config)


def test_rows_are_padded_and_never_cut(model_config):
    """Real parts are unchanged, padding is invisible, and a row that does not fit is refused."""
    prompt = encode_prompt([1, 2, 3], [], model_config)
    image = encode_prompt(
        tokens_of(GRIDS[1:2], model_config), fake_images(GRIDS[1:2], model_config), model_config
    )
    rows = [causal_row(prompt, [7, PAD]), causal_row(image, [8])]
    batch = pad_rows(rows, tokens=24, patches=52)
    assert list(batch["tokens"][0, :6]) == [1, 2, 3, 7, PAD, 0]
    assert batch["image_index"][0].max() == -1  # a placeholder id in generated text is text
    assert list(batch["subtree_end"][0, :7]) == [5] * 5 + [6, 7]
    assert list(batch["positions"][0, 0, :6]) == [0, 1, 2, 3, 4, 0]
    after = image.next_position
    assert np.all(batch["positions"][1, :, len(image.tokens)] == after)
    assert np.all(batch["full_seg"][0] == -1) and np.all(batch["window_seg"][1, 48:] == -1)
    kinds = {name: value.dtype for name, value in batch.items()}
    assert kinds.pop("patches") == np.float32 and set(kinds.values()) == {np.dtype(np.int32)}
    with pytest.raises(UserError, match="row 1 has 48 patches, more than the 44"):
        pad_rows(rows, tokens=24, patches=44)
    with pytest.raises(UserError, match="row 0 has 5 tokens, more than the 4"):
        pad_rows(rows, tokens=4, patches=52)


def test_the_processor_gives_rows_in_the_assumed_order(folder, model_config):
    """Rows of the HF image processor: (merged row, merged column, row in it, column in it)."""
    processing = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = processing.Qwen2VLImageProcessorPil.from_pretrained(folder)
    image = picture(196, 140)
    out = processor(images=[image], return_tensors="np")
    assert tuple(out["image_grid_thw"][0]) == GRIDS[0]
    layout = image_layout(GRIDS[0], model_config)
    mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    pixels = (np.asarray(image) / 255.0 - mean) / std
    for patch, (row, col) in zip(out["pixel_values"][layout.order], layout.fields["patch_pos"]):
        cut = pixels[row * 14 : row * 14 + 14, col * 14 : col * 14 + 14]
        got = patch.reshape(3, 2, 14, 14)
        np.testing.assert_allclose(got[:, 0], cut.transpose(2, 0, 1), atol=1e-5)
        assert np.array_equal(got[:, 0], got[:, 1])  # a still image is its own second frame
