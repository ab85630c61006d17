"""OpenAI's API over our sessions: models, chat completions, responses, conversations. See docs/openai.md."""
