"""Requests on the one MLX thread."""
