"""Published and saved models: the catalog, where a handle's files come from, reading and writing directories."""
