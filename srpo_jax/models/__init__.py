"""The policy networks: one shared decoder, one file per family, vision towers."""
