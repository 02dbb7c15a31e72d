"""Everything that lets a policy speak: loading it for sampling, and the sampler."""
