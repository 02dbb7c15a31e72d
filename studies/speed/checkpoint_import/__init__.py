"""Reading a checkpoint onto a mesh: our way beside others."""
