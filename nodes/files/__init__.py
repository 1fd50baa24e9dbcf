"""The nodes that write, show and clear files."""
