"""`python -m apps.demo_model`: serve the demo model in the foreground and print its port."""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.demo_model.server import LOOPBACK, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m apps.demo_model", description="A scripted Messages API.")
    parser.add_argument("--host", default="127.0.0.1", choices=LOOPBACK, help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0 lets the system choose")
    parser.add_argument("--port-file", type=Path, help="file that receives the port")
    chosen = parser.parse_args()
    run(chosen.host, chosen.port, chosen.port_file)


if __name__ == "__main__":
    main()
