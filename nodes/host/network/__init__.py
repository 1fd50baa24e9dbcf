"""What is done to a network while it is trained."""
