"""Qwen2.5-VL."""

from srpo_jax.models.blocks.config import Family
from srpo_jax.models.blocks.qwen_positions import mrope_positions
from srpo_jax.models.families.qwen2_5_vl.images import Images
from srpo_jax.models.families.qwen2_5_vl.model import Tower, image_layout, read_config
from srpo_jax.models.families.qwen2_5_vl.weights import HEAD, IN_MEMORY, SPELLINGS, table

FAMILY = Family(
    model_types=("qwen2_5_vl",),
    read_config=read_config,
    tower=Tower,
    image_layout=image_layout,
    positions=mrope_positions,
    images=Images,
    tensors=table,
    head=HEAD,
    spellings=SPELLINGS,
    in_memory=IN_MEMORY,
)
