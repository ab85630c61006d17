"""Review a change: `python review.py https://github.com/you/repository --base main --head topic`.

Exit code: 0 approved, 1 changes requested, 2 no review.
"""

import argparse
import sys
from typing import Any

from claude_agent_api import ClaudeAgentError, Client

PROMPT = """Review the change from the repository in `before` to that in `after`: `git diff --no-index before after`.
Read what is around it. Name only what breaks or misleads, not what you would have written otherwise."""

SCHEMA = {
    "type": "object",
    "required": ["verdict", "findings"],
    "properties": {
        "verdict": {"enum": ["approve", "request_changes"]},
        "findings": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["file", "line", "problem"],
                "properties": {
                    "file": {"type": "string", "description": "relative to the repository"},
                    "line": {"type": "integer", "description": "in the new version"},
                    "problem": {"type": "string", "description": "what happens, and when"},
                },
            },
        },
    },
}


def review(client: Client, repository: str, base: str, head: str, prompt: str = PROMPT) -> dict[str, Any]:
    """What was found, as SCHEMA has it."""
    result = client.ask(
        prompt,
        title=f"Review of {head}",
        metadata={"repository": repository, "head": head},
        resources=[
            {"repository": {"url": repository, "ref": base}, "path": "before"},
            {"repository": {"url": repository, "ref": head}, "path": "after"},
        ],
        # It reads, and nothing else; what would need a person is refused. Code of strangers is hostile.
        permission_mode="dontAsk",
        unattended=True,
        tools=["Bash", "Glob", "Grep", "Read"],
        allowed_tools=["Bash(git diff:*)", "Glob", "Grep", "Read"],
        output_format={"type": "json_schema", "schema": SCHEMA},
        max_turns=50,
    )
    found: dict[str, Any] = result["structured_output"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Review a change with an agent.")
    parser.add_argument("repository", help="its https URL, of a host that the server clones from")
    parser.add_argument("--base", default="main")
    parser.add_argument("--head", required=True)
    parser.add_argument("--prompt", default=PROMPT)
    given = parser.parse_args()
    try:
        with Client() as client:
            found = review(client, given.repository, given.base, given.head, given.prompt)
    except ClaudeAgentError as error:
        print(f"No review: {error}", file=sys.stderr)
        return 2
    for one in found["findings"]:
        print(f"{one['file']}:{one['line']}: {one['problem']}")
    print(found["verdict"])
    return 0 if found["verdict"] == "approve" else 1


if __name__ == "__main__":
    sys.exit(main())
