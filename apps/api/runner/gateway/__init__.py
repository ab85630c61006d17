"""The way of agents to a model: a server on the loopback that puts the real credential in, and counts what was used."""
