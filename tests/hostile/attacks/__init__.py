"""Attacks that an agent's tool runs; see `__main__`. Standard library only, and nothing of ours."""
