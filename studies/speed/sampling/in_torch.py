"""transformers and a bare loop of torch as studies.speed.sampling compares them; and, without a
way in the setting, the checkpoint that all ways load."""

from __future__ import annotations

import copy
import json
import pathlib
import sys

import questions as asked
import torch
import transformers

SETTING = json.loads(sys.argv[2])


def main() -> None:
    sizes = asked.QUICK if SETTING["quick"] else asked.Sizes()
    folder = pathlib.Path(SETTING["folder"])
    if "way" not in SETTING:
        torch.manual_seed(0)
        model = transformers.Qwen2_5_VLForConditionalGeneration(config(sizes))
        model.save_pretrained(folder)
        return
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    found = asked.questions(sizes, SETTING["questions"], 3 * 2 * 14 * 14)
    way = {"generate": generate, "reused": reused, "loop": loop}[SETTING["way"]]

    def call() -> dict[str, float]:
        with torch.inference_mode():
            lengths = [n for question in found for n in way(model, sizes, question)]
        return {"tokens": sum(lengths), "branches": len(lengths)}

    asked.serve(call)


def config(sizes: asked.Sizes) -> transformers.Qwen2_5_VLConfig:
    """A narrow Qwen2.5-VL with a tower of one small block, whose share of the time is little."""
    head = sizes.hidden // sizes.heads
    rest = 3 * head // 16
    text = dict(
        vocab_size=sizes.vocab,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.ffn,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=4096,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [head // 2 - 2 * rest, rest, rest],
        },
        pad_token_id=sizes.vocab - 8,
        bos_token_id=None,
        eos_token_id=None,
    )
    vision = dict(
        depth=1,
        hidden_size=32,
        intermediate_size=64,
        num_heads=1,
        out_hidden_size=sizes.hidden,
        fullatt_block_indexes=[0],
    )
    return transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=False, **asked.marks(sizes)
    )


def _options(sizes: asked.Sizes) -> dict:
    return dict(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=sizes.new_tokens,
        eos_token_id=asked.ends(sizes),
        pad_token_id=sizes.vocab - 8,
    )


def _lengths(new: torch.Tensor, sizes: asked.Sizes) -> list[int]:
    """Tokens of every row of new [R, n] up to the first that ends it."""
    ended = torch.isin(new, torch.tensor(asked.ends(sizes)))
    return [int(row.int().argmax()) + 1 if row.any() else len(row) for row in ended]


def _rows(question: asked.Question, start: int, count: int, sizes: asked.Sizes) -> dict:
    ids = torch.tensor([[*question.ids.tolist(), *question.path[:start].tolist()]] * count)
    return _marked(ids, sizes)


def _marked(ids: torch.Tensor, sizes: asked.Sizes) -> dict:
    image = asked.marks(sizes)["image_token_id"]
    return {"input_ids": ids, "mm_token_type_ids": (ids == image).int()}


def _pictures(question: asked.Question, count: int) -> dict:
    return {
        "pixel_values": torch.from_numpy(question.patches).repeat(count, 1),
        "image_grid_thw": torch.tensor([question.grid] * count),
    }


def generate(model, sizes: asked.Sizes, question: asked.Question) -> list[int]:
    """All branches of a question as one batch, padded on the left."""
    longest = len(question.ids) + max(question.starts)
    ids = torch.full((len(question.starts), longest), sizes.vocab - 8)
    seen = torch.zeros_like(ids)
    for row, start in enumerate(question.starts):
        own = [*question.ids.tolist(), *question.path[:start].tolist()]
        ids[row, longest - len(own) :] = torch.tensor(own)
        seen[row, longest - len(own) :] = 1
    pictures = _pictures(question, len(question.starts))
    out = model.generate(**_marked(ids, sizes), attention_mask=seen, **pictures, **_options(sizes))
    return _lengths(out[:, longest:], sizes)


def _prefilled(model, sizes: asked.Sizes, question: asked.Question):
    """(the cache of the prompt and the whole path, the logits of every place)."""
    cache = transformers.DynamicCache(config=model.config)
    out = model(
        **_rows(question, max(question.starts), 1, sizes),
        **_pictures(question, 1),
        past_key_values=cache,
        use_cache=True,
    )
    return cache, out.logits


def reused(model, sizes: asked.Sizes, question: asked.Question) -> list[int]:
    """One prefill; then generate() for each prefix, whose last token it computes once more."""
    whole, logits = _prefilled(model, sizes, question)
    lengths = []
    for start in sorted(set(question.starts)):
        count, own = question.starts.count(start), len(question.ids) + start
        cache = copy.deepcopy(whole)
        cache.crop(own - 1 - logits.shape[1])  # takes away so many
        cache.batch_repeat_interleave(count)
        rows = _rows(question, start, count, sizes)
        out = model.generate(
            **rows,
            attention_mask=torch.ones_like(rows["input_ids"]),
            past_key_values=cache,
            **_options(sizes),
        )
        lengths += _lengths(out[:, own:], sizes)
    return lengths


def loop(model, sizes: asked.Sizes, question: asked.Question) -> list[int]:
    """One prefill, its cache for all branches, of which each sees its own prefix."""
    cache, logits = _prefilled(model, sizes, question)
    starts, count = torch.tensor(question.starts), len(question.starts)
    prompt, whole = len(question.ids), logits.shape[1]
    cache.batch_repeat_interleave(count)
    seen = (torch.arange(whole) < (prompt + starts)[:, None]).long()
    ended = torch.zeros(count, dtype=torch.bool)
    ends, new = torch.tensor(asked.ends(sizes)), []
    # Positions go on from those of the prompt, where a picture takes fewer than it has tokens.
    side = sizes.side // 2
    begin = prompt - side * side + side + starts
    last = logits[0, prompt + starts - 1]
    for t in range(sizes.new_tokens):
        token = torch.multinomial(torch.softmax(last, -1), 1)
        new.append(token)
        ended |= torch.isin(token[:, 0], ends)
        if ended.all() or t + 1 == sizes.new_tokens:
            break
        seen = torch.cat([seen, torch.ones(count, 1, dtype=torch.long)], 1)
        out = model.model.language_model(
            input_ids=token,
            attention_mask=seen,
            position_ids=(begin + t)[None, :, None].expand(3, count, 1),
            past_key_values=cache,
            use_cache=True,
        )
        last = model.lm_head(out.last_hidden_state[:, 0])
    return _lengths(torch.cat(new, 1), sizes)


if __name__ == "__main__":
    main()
