"""Planning a run ahead of time, by compiling its real step without a TPU."""
