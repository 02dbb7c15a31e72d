"""srpo_jax/inference/prompting.py: what a policy is told, and the digest that names it."""

from __future__ import annotations

import json

import pytest

from srpo_jax.config.convert import as_config
from srpo_jax.configs import common
from srpo_jax.data_pipelines.path_formats.registry import make_format
from srpo_jax.data_pipelines.prompt import BARE
from srpo_jax.data_pipelines.records import CATEGORIES, Record, write_records
from srpo_jax.errors import UserError
from srpo_jax.inference.prompting import load_asking
from srpo_jax.models.hf.prompt_encoder import BAKED
from tests.support.tiny import picture, tiny_qwen2_5_vl


def config(**changes):
    """The default config with changes, as prompt__system="x"."""
    cfg = common.get_config()
    cfg.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return as_config(cfg)


@pytest.fixture
def folder(tmp_path):
    return tiny_qwen2_5_vl(tmp_path / "model")


def test_the_settings_are_what_the_policy_is_told(folder):
    """By default the path format's own instruction; bare is the question alone."""
    assert (
        load_asking(config(), folder).encoder.prompt.after
        == make_format("lines").instruction.split("}")[1]
    )
    told = load_asking(config(prompt__system="Be kind.", prompt__instruction="none"), folder)
    assert told.encoder.prompt.system == told.about["system"] == "Be kind."
    ids = told.encoder.encode("What?", []).tokens.tolist()
    text = told.encoder.processor.decode(ids)
    assert "system\nBe kind.\n" in text and "user\nWhat?\n" in text
    assert load_asking(config(), folder, bare=True).encoder.prompt == BARE


def test_the_digest_changes_with_whatever_changes_prompts(folder):
    """Template, tokenizer, pictures' size, end tokens, texts and path format are named by it; a
    card, or where the same template lies, is not (cases/edges/05)."""
    first = load_asking(config(), folder)
    (folder / "README.md").write_text("another card")
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    (folder / "chat_template.jinja").write_text(template)
    again = load_asking(config(), folder)
    assert (again.digest, again.about) == (first.digest, first.about)
    digests = {first.digest}
    for changes in (
        {"prompt__system": "Be kind."},
        {"prompt__instruction": "none"},
        {"prompt__instruction": "{question}!"},
        {"format__strict": True},
    ):
        digests.add(load_asking(config(**changes), folder).digest)
    assert len(digests) == 5
    shown = load_asking(config(data__max_pixels=9999), folder)
    digests.add(shown.digest)
    assert len(digests) == 6 and shown.outlines != first.outlines == again.outlines
    assert shown.about["processor"] != first.about["processor"]
    same = dict(first.about)
    for name, change in (
        ("preprocessor_config.json", lambda c: c.update(max_pixels=c["min_pixels"] * 4)),
        ("tokenizer_config.json", lambda c: c.update(model_max_length=7)),
        ("generation_config.json", lambda c: c.update(eos_token_id=[370])),
    ):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
        found = load_asking(config(), folder)
        assert found.about["processor"] != same["processor"]
        assert found.digest not in digests
        digests.add(found.digest)
    (folder / "chat_template.json").unlink()
    (folder / "chat_template.jinja").write_text(template.replace("assistant", "helper"))
    assert load_asking(config(), folder).digest not in digests


def test_a_baked_prompt_is_not_said_twice(folder):
    """A folder whose template has a prompt in it is asked the bare question; to tell it more is
    refused in one line."""
    (folder / BAKED).write_text("{}")
    for instruction in ("auto", "none"):
        found = load_asking(config(prompt__instruction=instruction), folder)
        assert found.encoder.prompt == BARE
    for changes in ({"prompt__system": "x"}, {"prompt__instruction": "{question}!"}):
        with pytest.raises(UserError, match="has a prompt in it already") as error:
            load_asking(config(**changes), folder)
        assert "\n" not in str(error.value)


def test_each_category_is_asked_with_its_own_demonstrations(folder, tmp_path):
    """Texts and pictures are those of a prompt that shows these alone."""
    records = []
    for i, category in enumerate((None, CATEGORIES[0])):
        picture(56 + 28 * i, 56, seed=i).save(tmp_path / f"{i}.png")
        name = f"{i}.png"
        records.append(Record(f"d{i}", (name,), f"Why {i}?", ("I look.",), "So.", category))
        write_records(records[i:], tmp_path / f"only{i}.jsonl")
    write_records(records, tmp_path / "both.jsonl")
    told = {"prompt__num_demos": 1, "prompt__instruction": "none"}
    both = {"prompt__demos": str(tmp_path / "both.jsonl"), "prompt__demo_select": "category"}
    encoder = load_asking(config(**told, **both), folder).encoder
    asked = picture(28, 28, seed=5)
    for i, category in enumerate((None, CATEGORIES[0])):
        only = {"prompt__demos": str(tmp_path / f"only{i}.jsonl")}
        wanted = load_asking(config(**told, **only), folder).encoder.encode("And?", [asked])
        found = encoder.of_category(category).encode("And?", [asked])
        assert found.tokens.tolist() == wanted.tokens.tolist()
        assert (found.patches == wanted.patches).all()
    assert encoder.of_category(None) is encoder.of_category(None)
