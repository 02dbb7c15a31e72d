"""One folder a model family: its network, its tensor names, its images."""
