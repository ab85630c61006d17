"""Hours of steady traffic, and whether what a fleet uses levels off."""
