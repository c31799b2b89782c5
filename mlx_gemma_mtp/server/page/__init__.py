"""A chat in the browser, as plain files."""
