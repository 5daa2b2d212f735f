"""The embedded model from nothing: data, CLIP pair, autoencoder, denoiser, adapters, bundle."""
