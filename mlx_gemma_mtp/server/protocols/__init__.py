"""The protocols that clients speak, a file each: bodies in, answers and events out."""
