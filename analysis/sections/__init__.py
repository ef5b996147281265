"""Sections of the report, one a file: its tables, its words and what stands beside the page."""
