"""The way out: names, connections and requests to servers of others."""
