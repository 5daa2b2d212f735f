"""What a run tells of itself: validation, contact sheets, a report."""
