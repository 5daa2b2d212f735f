"""Training image prompt adapters: what is trained, on what, from what."""
