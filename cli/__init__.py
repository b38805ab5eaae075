"""The command line: a client of the HTTP API, and of nothing else of this repository."""
