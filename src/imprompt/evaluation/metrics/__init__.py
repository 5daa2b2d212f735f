"""Metrics as pure functions of features; who made the features is recorded beside every value."""
