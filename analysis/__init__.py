"""From stored records to evidence: frames, statistics, figures, the report."""
