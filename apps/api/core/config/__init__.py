"""What an agent is configured with: values alone, no database."""
