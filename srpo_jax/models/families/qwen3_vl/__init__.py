"""The qwen3_vl family."""
