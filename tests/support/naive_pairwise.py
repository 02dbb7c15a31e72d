"""The loss as the formulas say it: every sequence is a row of its own, pair by pair, full logits.

Shares no code with srpo_jax/pack or srpo_jax/train/losses: prefixes, pairs, weights, odds and
averages are written again here, from the formulas of RPO and of its code. A row is prompt +
prefix + branch, plain causal; nothing is packed and nothing is shared.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.models.inputs import causal_row, pad_rows


def naive_batch(trees, *, rows, pairs, tokens, patches, reference="dataset", odds_from="branch"):
    """Fixed-shape arrays: `inputs` of all rows, the reference term and every pair, masks [., T]."""
    made, ref_terms, pair_terms = [], [], []  # (row, own tokens' mask, weight), ...

    def add_row(tree, continuation):
        made.append(causal_row(tree.prompt, np.asarray(continuation, np.int32)))
        return len(made) - 1

    def mask(tree, begin, end):
        out = np.zeros(tokens, np.float32)
        out[len(tree.prompt.tokens) + begin : len(tree.prompt.tokens) + end] = 1
        return out

    for tree in trees:
        path = [t for piece in tree.pieces for t in piece]
        if reference == "dataset":
            row = add_row(tree, path)
            ref_terms.append((row, mask(tree, 0, len(path)), 1 / len(trees)))
        by_point = []
        for at in range(len(tree.pieces)):
            safe = [b for b in tree.branches if b.at == at and b.safe]
            unsafe = [b for b in tree.branches if b.at == at and not b.safe]
            found = [(c, r, _same(c, r)) for c in safe for r in unsafe]
            found = [
                (c, r, same)
                for c, r, same in found
                if (
                    same < min(len(c.tokens), len(r.tokens))
                    if odds_from == "divergence"
                    else list(c.tokens) != list(r.tokens)
                )
            ]
            if found:
                by_point.append((at, found))
        for at, found in by_point:
            prefix = [t for piece in tree.pieces[:at] for t in piece]
            for chosen, rejected, same in found:
                weight = 1 / (len(by_point) * len(found) * len(trees))
                skip = len(prefix) + (same if odds_from == "divergence" else 0)
                sides = []
                for branch in (chosen, rejected):
                    row = add_row(tree, [*prefix, *branch.tokens])
                    end = len(prefix) + len(branch.tokens)
                    sides.append((row, mask(tree, skip, end)))
                    if branch is chosen and reference == "chosen":
                        ref_terms.append((row, mask(tree, 0, end), weight))
                pair_terms.append((*sides[0], *sides[1], weight))

    nothing = np.eye(tokens, dtype=np.float32)[1]  # some token, with weight 0
    assert len(made) <= rows and len(ref_terms) <= pairs and len(pair_terms) <= pairs
    empty = {
        name: value[..., :0]
        if name in ("tokens", "positions", "subtree_end", "image_index")
        else value[:0]
        for name, value in causal_row(trees[0].prompt).items()
    }
    made += [empty] * (rows - len(made))
    ref_terms += [(0, nothing, 0.0)] * (pairs - len(ref_terms))
    pair_terms += [(0, nothing, 0, nothing, 0.0)] * (pairs - len(pair_terms))
    return {
        "inputs": pad_rows(made, tokens=tokens, patches=patches),
        "ref": tuple(map(np.asarray, zip(*ref_terms))),
        "pairs": tuple(map(np.asarray, zip(*pair_terms))),
    }


def _same(chosen, rejected):
    n = 0
    for a, b in zip(chosen.tokens, rejected.tokens):
        if a != b:
            break
        n += 1
    return n


def token_logps(model, head_matrix, params, inputs):
    """float32 [rows, T]: log p of each token given everything before it; 0 for the first."""
    hidden = model.apply({"params": params}, inputs)
    logits = hidden @ head_matrix(params, model.config)
    logps = jax.nn.log_softmax(logits[:, :-1])
    own = jnp.take_along_axis(logps, jnp.asarray(inputs["tokens"])[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(own, ((0, 0), (1, 0)))


def naive_loss(
    logp,
    frozen,
    batch,
    *,
    lam=0.3,
    contrast="odds_ratio",
    mean=True,
    beta=0.1,
    gamma=0.5,
    ref_coef=1.0,
):
    """logp, frozen [rows, T]: log-probs under the policy and the frozen reference policy."""
    row, mask, weight = batch["ref"]
    ref = jnp.sum(weight * -jnp.sum(logp[row] * mask, 1) / jnp.sum(mask, 1))

    c_row, c_mask, r_row, r_mask, weight = batch["pairs"]

    def score(values, row, mask):
        total = jnp.sum(values[row] * mask, 1)
        return total / jnp.sum(mask, 1) if mean else total

    c, r = score(logp, c_row, c_mask), score(logp, r_row, r_mask)
    c0, r0 = score(frozen, c_row, c_mask), score(frozen, r_row, r_mask)
    if contrast == "odds_ratio":
        p, q = jnp.exp(c), jnp.exp(r)
        terms = -jnp.log(jax.nn.sigmoid(jnp.log(p / (1 - p)) - jnp.log(q / (1 - q))))
    elif contrast == "dpo":
        terms = -jnp.log(jax.nn.sigmoid(beta * (c - c0) - beta * (r - r0)))
    elif contrast == "simpo":
        terms = -jnp.log(jax.nn.sigmoid(beta * c - beta * r - gamma))
    else:
        terms = (c - c0 - r + r0 - 1 / (2 * beta)) ** 2
    return ref_coef * ref + lam * jnp.sum(weight * terms)
