"""Qwen3-VL (dense)."""

from srpo_jax.models.blocks.config import Family
from srpo_jax.models.blocks.qwen_positions import mrope_positions
from srpo_jax.models.families.qwen2_5_vl.images import Images
from srpo_jax.models.families.qwen3_vl.model import image_layout, read_config
from srpo_jax.models.families.qwen3_vl.tower import Tower
from srpo_jax.models.families.qwen3_vl.weights import HEAD, SPELLINGS, table

FAMILY = Family(
    model_types=("qwen3_vl",),
    read_config=read_config,
    tower=Tower,
    image_layout=image_layout,
    positions=mrope_positions,
    images=Images,
    tensors=table,
    head=HEAD,
    spellings=SPELLINGS,
)
