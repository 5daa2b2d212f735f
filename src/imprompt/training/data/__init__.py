"""Training data: any source becomes one manifest; checks, quarantine, aspect buckets and references stand on it."""
