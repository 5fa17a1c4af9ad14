"""The connections of an interface server: what passes between clients and workers."""
