"""Experiments: one readable file each, which starts from common.py."""

if __name__ == "configs":  # from a checkout's folder: every module would exist twice
    raise ImportError("configs is now srpo_jax.configs")
