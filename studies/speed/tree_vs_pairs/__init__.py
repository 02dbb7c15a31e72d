"""One step over packed trees beside pairwise steps."""
