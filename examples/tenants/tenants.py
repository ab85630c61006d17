"""Customers of yours, each a tenant: `python tenants.py add NAME`, `suspend NAME`, `remove NAME`, `listen PORT`.

What they have is in customers.json of this directory, which only its owner can read.
"""

import argparse
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from claude_agent_api import ClaudeAgentError, Client, WebhookInvalid, verify_webhook

CUSTOMERS = Path(os.environ.get("CUSTOMERS", "customers.json"))
HOOKS = os.environ.get("HOOKS_URL", "http://127.0.0.1:8000")
LIMITS = {"concurrent_runs": 5, "usd_per_month": 200, "workspace_bytes": 10_000_000_000}


def add(admin: Client, name: str) -> None:
    """Make the tenant, bind it, and be told of its runs."""
    admin.request("POST", "/admin/tenants", json={"name": name})
    admin.request("PUT", f"/admin/tenants/{name}/limits", json=LIMITS)
    key = admin.keys.create(tenant=name, name="backend", scopes=["write"])
    # Webhooks belong to the tenant, so its own key registers this one.
    with Client(api_key=key["secret"]) as theirs:
        hook = theirs.webhooks.create(url=f"{HOOKS}/{name}", events=["run.succeeded", "run.failed"])
    save({**customers(), name: {"key": key["secret"], "webhook_secret": hook["secret"]}})
    print(f"{name} is a tenant, with a key in {CUSTOMERS}")


def suspend(admin: Client, name: str) -> None:
    """Nothing of it runs any more, and nothing is lost: `resume` is the way back."""
    admin.request("POST", f"/admin/tenants/{name}/suspend")
    print(f"{name} is suspended")


def remove(admin: Client, name: str) -> None:
    """All of it goes: sessions, files, keys. `deleting`: there is much, and the servers go on with it."""
    status = admin.request("DELETE", f"/admin/tenants/{name}")["status"]
    save({other: what for other, what in customers().items() if other != name})
    print(f"{name}: {status}")


def listen(port: int) -> None:
    """Take webhooks, at a path for each customer, and believe none that is not signed with that customer's secret."""
    seen: set[str] = set()  # In a database, if you have several of these.

    class Hooks(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), 1_000_000))
            customer = customers().get(self.path.removeprefix("/"))
            try:
                message = verify_webhook(body, dict(self.headers), customer["webhook_secret"]) if customer else None
            except WebhookInvalid as error:
                return self.answered(401, f"refused: {error}")
            if message is None:
                return self.answered(404, f"refused: no customer at {self.path}")
            if message["delivery_id"] in seen:  # A message may come twice.
                return self.answered(204)
            seen.add(message["delivery_id"])
            return self.answered(204, f"{self.path[1:]}: {message['type']} {message['data']['run_id']}")

        def answered(self, status: int, said: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            if said:
                print(said, flush=True)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", port), Hooks) as server:
        print(f"listens on port {server.server_address[1]}", flush=True)
        server.serve_forever()


def customers() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(CUSTOMERS.read_text()) if CUSTOMERS.exists() else {}
    return found


def save(all_of_them: dict[str, Any]) -> None:
    new = CUSTOMERS.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(json.dumps(all_of_them, indent=2))
    new.replace(CUSTOMERS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["add", "suspend", "remove", "listen"])
    parser.add_argument("what", help="a customer's name; or a port")
    given = parser.parse_args()
    if given.command == "listen":
        listen(int(given.what))
        return 0
    try:
        with Client() as admin:
            {"add": add, "suspend": suspend, "remove": remove}[given.command](admin, given.what)
    except ClaudeAgentError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
