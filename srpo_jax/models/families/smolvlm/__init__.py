"""SmolVLM, SmolVLM2 and Idefics3."""

from srpo_jax.models.blocks.config import Family
from srpo_jax.models.blocks.tiled_vit import TileTower, text_positions
from srpo_jax.models.families.smolvlm.images import Images
from srpo_jax.models.families.smolvlm.model import image_layout, read_config
from srpo_jax.models.families.smolvlm.weights import HEAD, SPELLINGS, table

FAMILY = Family(
    model_types=("smolvlm", "idefics3"),
    read_config=read_config,
    tower=TileTower,
    image_layout=image_layout,
    positions=text_positions,
    images=Images,
    tensors=table,
    head=HEAD,
    spellings=SPELLINGS,
)
