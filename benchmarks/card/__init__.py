"""What `benchmarks/gpu.py` measures on a card, and how."""
