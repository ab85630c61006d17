"""Files that agents make: the one way to them, archives of them, and the store that they travel through."""
