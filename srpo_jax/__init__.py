"""srpo_jax: Safety-aware Reasoning Path Optimization for vision-language models in JAX."""

__version__ = "0.1.0"
