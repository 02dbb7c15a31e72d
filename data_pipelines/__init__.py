"""Data on disk: records, images, path format, tree records, and the SSUI-mini world."""

if __name__ == "data_pipelines":  # from a checkout's folder: every module would exist twice
    raise ImportError("data_pipelines is now srpo_jax.data_pipelines")
