"""Side-by-side measurements: each prints a table and, on its last line, one JSON object."""
