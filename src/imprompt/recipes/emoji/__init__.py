"""The embedded model from nothing: data, vision tower, autoencoder, denoiser, adapters, bundle."""
