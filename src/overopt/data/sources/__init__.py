"""One reader per kind of data, one interface."""
