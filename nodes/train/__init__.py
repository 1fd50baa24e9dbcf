"""The nodes that train, and their options."""
