"""`srpo plan --for=explore`: a mesh for sampling, and what to expect of it."""
