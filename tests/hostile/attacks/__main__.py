"""Run attacks, as an agent's tool does it.

    python DIRECTORY FACTS RESULTS GROUP...

FACTS: a JSON file with all that an attacker could find out: numbers of processes, paths, ports. RESULTS: where a line
of JSON is written for each attack of these groups.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    facts, results, *groups = sys.argv[1:]
    here = Path(__file__).parent
    sys.path.append(str(here.parent))
    for group in groups:
        importlib.import_module(f"{here.name}.{group}")
    table = importlib.import_module(f"{here.name}.table")
    given = json.loads(Path(facts).read_text())
    with Path(results).open("w") as out:
        for name, one in table.TABLE.items():
            out.write(json.dumps({"name": name, **table.tried(one, given)}) + "\n")
            out.flush()
    print("tried", *groups)


if __name__ == "__main__":
    main()
