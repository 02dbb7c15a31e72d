"""What `srpo data ...` does: foreign data in and out, and one page on a data set."""
