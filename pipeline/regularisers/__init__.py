"""Penalties that a trainer may add to the loss, one a file."""
