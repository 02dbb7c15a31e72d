"""Settings: every field with its default, allowed values and help, and how a config is loaded."""
