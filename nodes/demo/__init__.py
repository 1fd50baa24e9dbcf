"""The demo nodes, and the demo model built from the host's classes."""
