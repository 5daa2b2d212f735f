"""Image encoders: pictures in, features out. Frozen, and somebody else's."""
