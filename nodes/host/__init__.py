"""The host as the core sees it."""
