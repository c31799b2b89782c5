"""One round, and how many drafts it gets."""
