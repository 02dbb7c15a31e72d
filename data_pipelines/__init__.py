"""Data: records, images, reasoning-tree records, the grain loader, and the SSUI-mini world."""
