"""A training run: its loop, what changes during it, how it is kept, and what is looked at meanwhile."""
