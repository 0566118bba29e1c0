"""What was gained and what was lost, with intervals."""
