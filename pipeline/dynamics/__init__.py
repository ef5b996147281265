"""Lyapunov spectra and finite-time Lyapunov exponents. Needs torch, numpy and scipy alone."""
