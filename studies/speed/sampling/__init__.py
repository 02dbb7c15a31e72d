"""How fast branches are sampled, beside others; see __main__.py."""
