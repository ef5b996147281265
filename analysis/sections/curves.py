"""How the losses of the trials went."""

from analysis.sections.base import Section

SECTION = Section("Learning curves")
