"""Files: whole or not there."""
