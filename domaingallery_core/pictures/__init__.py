"""Pictures of pictures and of numbers."""
