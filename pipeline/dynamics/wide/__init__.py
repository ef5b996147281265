"""Mean-field theory of wide random networks, a subject a file; `meanfield` has all its names."""
