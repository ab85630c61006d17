"""The domain: sessions, runs, events and commands over PostgreSQL and Redis. Knows no HTTP and no SDK."""
