"""The smolvlm family."""
