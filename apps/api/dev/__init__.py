"""One-command local mode: embedded PostgreSQL and Valkey servers, the demo model, N API servers, one supervisor.

Only the command line enters this room. Production sets DATABASE_URL and REDIS_URL and runs `serve`.
"""
