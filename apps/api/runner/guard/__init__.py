"""Confinement: the program that starts the CLI, and what the server knows of processes."""
