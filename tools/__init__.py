"""Programs of the repository: start a host, talk to it, make files. Not part of the installed pack."""
