"""What can be said of a data set without a model: counts, lengths, pictures, duplicates, leaks."""
