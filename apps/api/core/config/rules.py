r"""Rules of permission: `Tool` or `Tool(content)`, read and written as the agent's own program reads them.

The grammar is that of the CLI 2.1.327, whose reader was tried text by text: brackets in the content are literal, `\(`,
`\)` and `\\` stand for `(`, `)` and `\`, and the rule ends with the bracket that closes it. In a rule for commands `*`
is a wildcard, `\*` a star, and `:*` at the end a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_RULE = re.compile(r"([A-Za-z][A-Za-z0-9_*-]{0,127})(?:\(([^\x00-\x1f\x7f]{0,500})\))?")
# Of what clients send, so without a way to look at a run of brackets or of backslashes from each of its signs.
_BRACKET = re.compile(r"(?<!\\)\\*+([()])")
_SPLIT = re.compile(r"\)[^() ,]*[ ,]")
"""Where the CLI would end a rule in a list of rules: a bracket closes, whichever it is, and then there is a comma or a
space. Rules are not given to it as such a list, but older instances of a fleet do that."""

_BY_PATH = {"Read": "Read", "Glob": "Read", "Edit": "Edit", "Write": "Edit", "NotebookEdit": "Edit"}
"""Tools that handle files, and the one whose rules with a path count for them."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. A `content` of None is about every use of the tool.

    `str` writes it so that `parse` and the CLI read the same rule.
    """

    tool: str
    content: str | None = None

    @classmethod
    def of(cls, tool: str, content: str | None) -> Rule:
        """The rule of these two parts: nothing, and a star alone, are about every use of the tool."""
        return cls(tool, None if content in ("", "*") else content)

    def __str__(self) -> str:
        if self.content is None:
            return self.tool
        escaped = self.content.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        return f"{self.tool}({escaped})"


def parse(text: str) -> Rule:
    """The one rule that this text is. Raises ValueError with the reason when it is none, or not clearly one."""
    found = _RULE.fullmatch(text)
    if found is None:
        raise ValueError("must be Tool or Tool(content), of at most 500 printable characters")
    tool, raw = found.groups()
    if raw is None:
        return Rule(tool)
    # Every bracket in the content, and whether a backslash takes its meaning.
    brackets = [(bracket[1], len(bracket[0]) % 2 == 0) for bracket in _BRACKET.finditer(raw)]
    if (len(raw) - len(raw.rstrip("\\"))) % 2:
        raise ValueError("the bracket at its end is escaped, so that nothing closes it")
    if _SPLIT.search(raw):
        raise ValueError("a bracket closes before a comma or a space, which would be read as the end of the rule")
    plain = [kind for kind, escaped in brackets if not escaped]
    if any(escaped for _, escaped in brackets) and plain.count("(") != plain.count(")"):
        raise ValueError("escaped brackets stand beside others that do not pair")
    return Rule.of(tool, raw.replace("\\(", "(").replace("\\)", ")").replace("\\\\", "\\"))


def check(text: str) -> str:
    """The text as it was given. Raises ValueError unless it is one rule."""
    parse(text)
    return text


def check_denial(text: str) -> str:
    """The text as it was given. Raises ValueError unless it is one rule, and one by which the CLI denies something."""
    if reason := ignored(parse(text)):
        raise ValueError(reason)
    return text


def ignored(rule: Rule) -> str | None:
    """Why the CLI drops a rule of what never runs, without a word; None: it does not."""
    tool, content = rule.tool, rule.content
    if content is None:
        return None
    if tool.startswith("mcp__"):
        return "a rule for a tool of an MCP server has no content"
    if tool in _BY_PATH and (_BY_PATH[tool] != tool or ":*" in content):
        return f"paths are denied by {_BY_PATH[tool]}(path), without ':*'"
    if tool == "Bash" and content == ":*":
        return "there must be something before ':*'"
    if tool == "WebFetch" and not content.startswith("domain:"):
        return "the content must be domain:NAME"
    if tool == "WebSearch" and ("*" in content or "?" in content):
        return "the words of a search have no wildcards"
    return None


def same_call(tool: str, command: str) -> Rule:
    """The rule of exactly this command: nothing in it is a wildcard."""
    return Rule(tool, command.replace("*", "\\*"))


def readable(texts: Iterable[str]) -> list[Rule]:
    """Those of the rules, as they were stored once, that are clearly one rule. The others never meant anything safe."""
    found = []
    for text in texts:
        try:
            found.append(parse(text))
        except ValueError:
            continue
    return found


def denials(texts: Iterable[str]) -> list[Rule]:
    """Rules of what never runs, as they were stored once. One that cannot be read denies its tool as a whole."""
    found = []
    for text in texts:
        try:
            found.append(parse(text))
        except ValueError:
            found.append(Rule(text.partition("(")[0]))
    return found
