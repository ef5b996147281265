"""Architectures whose parameters lead with a member axis: one network, or a population of them."""
