"""The instances, and how work and commands reach the one that owns a session."""
