"""The reasoning tree on the host: structure, pairs, depth-first layout, packing, rows."""
