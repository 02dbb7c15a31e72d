"""`transformers serve` without torchvision, for families whose processor has a place for videos.

A script for test_serve.py. The registry that this was developed with has no torchvision for CPU;
without it transformers loads no video processor, and without that no processor of these families
at all. Still images need neither: here an empty object stands in its place. Pictures are resized by
PIL then, as we do.
"""

import importlib

from transformers import processing_utils
from transformers.cli.transformers import app


class NoVideos(dict):  # the processor is written to the log as JSON
    merge_size = temporal_patch_size = num_frames = fps = 2
    model_input_names: list[str] = []

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        return cls()


# Not by `from ... import`: that gives a placeholder of the lazy package.
auto = importlib.import_module("transformers.models.auto.video_processing_auto")
auto.AutoVideoProcessor = NoVideos
processing_utils.transformers_module.VideoProcessorMixin = NoVideos

if __name__ == "__main__":
    app()
