"""The nodes that draw, and enhancement as a patch of a MODEL."""
