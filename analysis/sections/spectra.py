"""What the measured spectra look like."""

from analysis.sections.base import Section

SECTION = Section("Spectra")
