"""The nodes that make what a training reads."""
