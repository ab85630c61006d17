"""One agent process: what it is given, how it starts, what it says."""
