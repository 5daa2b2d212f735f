"""Features computed once: what frozen encoders make of pictures and texts, kept in files and read at random."""
