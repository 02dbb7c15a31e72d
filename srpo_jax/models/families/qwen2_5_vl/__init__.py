"""The qwen2_5_vl family."""
