"""Seeded faults in all that a fleet is made of, steady traffic meanwhile, and a check of what clients are promised."""
