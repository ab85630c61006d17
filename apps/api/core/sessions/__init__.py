"""Sessions and all that belongs to one of them."""
