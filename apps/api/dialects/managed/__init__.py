"""Claude Managed Agents: the API that the official `anthropic` clients speak, by their `base_url`. See
docs/managed-agents.md and docs/adr/0034-managed-agents.md."""
