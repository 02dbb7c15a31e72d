"""InternVL3 and InternVL3.5 in the `-hf` layout."""

from srpo_jax.models.blocks.config import Family
from srpo_jax.models.blocks.tiled_vit import TileTower, text_positions
from srpo_jax.models.families.internvl.images import Images
from srpo_jax.models.families.internvl.model import image_layout, read_config
from srpo_jax.models.families.internvl.weights import HEAD, IN_MEMORY, SPELLINGS, table

FAMILY = Family(
    model_types=("internvl",),
    read_config=read_config,
    tower=TileTower,
    image_layout=image_layout,
    positions=text_positions,
    images=Images,
    tensors=table,
    head=HEAD,
    spellings=SPELLINGS,
    in_memory=IN_MEMORY,
)
