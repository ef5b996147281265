"""How features of the spectrum move during training."""

from analysis.sections.base import Section

SECTION = Section("Evolution")
