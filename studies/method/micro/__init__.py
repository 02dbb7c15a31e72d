"""The micro world: SSUI-mini without pictures and prose, so that a run takes seconds."""
