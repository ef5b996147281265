"""Spectra that others measured, as sweeps of ours: mapping of columns, checked tables, import."""
