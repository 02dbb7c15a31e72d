"""Data on disk: records, images, path format, tree records, and the SSUI-mini world."""
