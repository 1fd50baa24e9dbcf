"""What makes the files that are shipped: workflows, the demo model, its classifier."""
