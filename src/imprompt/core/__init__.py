"""Errors, pictures, files and weights: what every part stands on. Imports no other part."""
