"""Whether there is what a config names. The config itself knows no registry: names are looked up
here, so that a wrong one is told before anything heavy begins.
"""

from __future__ import annotations

from srpo_jax.config.fields import FIELDS, Config


def check_names(config: Config) -> None:
    """Errors: UserError for a contrast that there is not."""
    name = config.objective.contrast
    if name == FIELDS["objective.contrast"].default:
        return  # without importing jax, which takes a second
    from srpo_jax.train.losses.pairwise import find_loss

    find_loss(name)
