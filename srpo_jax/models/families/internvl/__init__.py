"""The internvl family."""
