"""Whether a program prints what a page shows.

`…` of the page stands for anything, and for nothing. All else must be there, from the beginning to the end and in this
order; white space does not count, since pages break lines. What is another one each time (ids, times, secrets, what it
cost and how long it took) is compared for being there.
"""

from __future__ import annotations

import re

MORE = "…"

EACH_TIME = [
    (r'"(\w*(?:_ms|_tokens|cost_usd|used_usd)|seq|last_seq|oldest_seconds)":\s*"?[\d.]+"?', r'"\1":<n>'),
    (r'"(sessions|running)":\s*\d+', r'"\1":<n>'),  # of an instance, which other pages use as well
    (r"""(["'])(?:applied|accepted)\1""", "<applied, or accepted where that took more than 2 s>"),
    (r'"rows":\d+,"bytes":\d+', '"rows":<n>,"bytes":<n>'),
    (r"\b\d+ lines", "<n> lines"),
    (r'"(task_id|sha256|etag|hostname|version|commit)":\s*"(?:[^"\\]|\\.)*"', r'"\1":<text>'),
    (r"\b[0-9a-f]{8}-(?:(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|…)", "<id>"),
    (r'"[0-9a-f]{4}…"', '"<id>"'),
    (r"\b\d{4}-\d\d-\d\dT[\d:.]+(?:Z|\+00:00)?", "<time>"),
    (r"\b20\d\d-\d\d-\d\d\b", "<day>"),
    (r"\b(?:cak|whsec)_[\w+/=-]*…?", "<secret>"),
    (r"\btoolu_\w*…?", "<tool>"),
    (r"/~[\w-]+(?:…[\w-]*)?/", "/<ticket>/"),
]


def same(text: str) -> str:
    """`text` without white space, and with a word in the place of each value that is another one each time."""
    for what, word in EACH_TIME:
        text = re.sub(what, word, text)
    return re.sub(r"\s+", "", text)


def missing(shown: str, printed: str) -> str:
    """What `shown` and `printed` differ in, or nothing."""
    printed = re.sub(r"^:.*\n", "", printed, flags=re.MULTILINE)  # what keeps a stream alive comes when it likes
    if not re.search(r"^\s*id: ", shown, flags=re.MULTILINE):
        printed = re.sub(r"^id: .*\n", "", printed, flags=re.MULTILINE)
    first, *others = re.split(f",?{MORE},?", same(shown))
    text = same(printed)
    if not text.startswith(first):
        return f"the page begins with {first!r}, and this with {text[: len(first) + 40]!r}"
    at = len(first)
    for piece in others[:-1]:
        if (found := text.find(piece, at)) < 0:
            return f"the page shows {piece!r}, and what comes after the piece before is {text[at:][:600]!r}"
        at = found + len(piece)
    if others and not text[at:].endswith(others[-1]):
        return f"the page ends with {others[-1]!r}, and this with {text[at:][-600:]!r}"
    return "" if others or at == len(text) else f"the page says nothing of {text[at:][:600]!r}"
