"""The project's own trainer: one resumable loop, the diffusion objective, conditioning dropout."""
