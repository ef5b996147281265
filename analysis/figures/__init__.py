"""Figures of the report, one a file: a table first, then its picture."""
