"""Early-performance predictors, one a file."""
