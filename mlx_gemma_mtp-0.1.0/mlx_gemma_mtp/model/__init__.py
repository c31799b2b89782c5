"""Arrays and weights. Knows nothing of files or requests."""
