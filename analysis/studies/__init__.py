"""Published experiments, one a file: claims stated in advance, what is run, and what came of it."""
