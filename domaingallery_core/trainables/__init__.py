"""What is trained on a model that belongs to someone else."""
