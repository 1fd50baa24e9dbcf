"""What a graph asks of its trainings, looked at before anything runs."""
