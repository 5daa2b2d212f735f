"""What a run will need, told from shapes alone."""
