"""One live session: its turns, approvals, hooks and ports."""
