"""What is minimised, as pure functions: noise, targets, weights, dropped conditions."""
