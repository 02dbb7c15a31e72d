"""From a checkpoint to a Hugging Face folder, and the check that it is the same model."""
