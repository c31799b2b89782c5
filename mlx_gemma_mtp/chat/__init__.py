"""A conversation in a terminal or a pipe: what `mgm chat` does."""
