"""What a training takes of memory, and how it takes less."""
