"""`mgm bench` and `mgm estimate`: what draft tokens gain, measured here or predicted for a Mac."""
