"""Two tenants that have the same of everything, by the same names, and one of them something more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import orjson

from tests.conftest import NewKey
from tests.fleet import Fleet
from tests.receiver import Receiver
from tests.watch import until

TAGS, TITLE, NAME, COMMAND, SECRET_NAME = ["shared"], "shared", "shared", "shared-command", "SHARED"
WRITES = {"permission_mode": "bypassPermissions", "enable_file_checkpointing": True}
PARTS = (
    "agents",
    "mcp-servers",
    "skills",
    "commands",
    "secrets",
    "webhooks",
    "requests",
    "sessions",
    "usage",
    "schedules",
)
"""What is listed, and is to be the same before and after whatever another tenant tries."""

OF_THE_SERVER = frozenset({"owner", "queue_position"})


@dataclass
class Tenant:
    """One of the two.

    Attributes:
        keys: headers, by what the key may: `full`, `bound` to a profile, `read`, `revoked`.
        marker: is in everything that is this tenant's own.
        ids: of what it has, by what that is, as parameters of paths are called.
        names: of what only this tenant has, by what that is.
    """

    name: str
    keys: dict[str, dict[str, str]]
    marker: str = field(default_factory=lambda: f"marker{uuid4().hex}")
    ids: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def traces(self) -> set[str]:
        """What nobody else is to see."""
        return {self.marker, *self.ids.values(), *self.names.values()} - {NAME, COMMAND, SECRET_NAME}


class Furnisher:
    """Gives a tenant something of every kind."""

    def __init__(self, fleet: Fleet, tenant: Tenant, receiver: Receiver) -> None:
        self._fleet, self._tenant, self._receiver = fleet, tenant, receiver

    async def __call__(self, method: str, path: str, body: Any = None) -> Any:
        client, headers = self._fleet[0].client, self._tenant.keys["full"]
        answer = await client.request(method, path, json=body, headers=headers)
        assert answer.is_success, (method, path, answer.text)
        return orjson.loads(answer.content) if answer.content[:1] == b"{" else answer.text

    async def furnish(self) -> None:
        tenant = self._tenant
        tenant.ids["key_id"] = (await self("GET", "/api/v1/whoami"))["key_id"]
        for name, secret_name in ((NAME, SECRET_NAME), (f"only-{uuid4().hex[:8]}", f"ONLY_{uuid4().hex[:8].upper()}")):
            await self._names(name, secret_name)
        tenant.names = {"agent": name, "name": name, "command": f"{name}-command", "secret": secret_name}
        await self._file()
        await asyncio.gather(self._webhook(), self._schedule(), self._session(), self._request(), self._dialects())

    async def _names(self, name: str, secret_name: str) -> None:
        marker = self._tenant.marker
        await self("PUT", f"/api/v1/secrets/{secret_name}", {"value": f"{marker}-a-secret-of-some-length"})
        made = await self("POST", "/api/v1/agents", {"name": name, "description": marker, "system_prompt": marker})
        self._tenant.ids["agent"] = made.get("agent_id") or made["name"]
        headers = {"X-Marker": marker, "Authorization": f"${{{secret_name}}}"}
        server = {"type": "http", "url": f"http://127.0.0.1/{marker}", "headers": headers}
        await self("PUT", f"/api/v1/mcp-servers/{name}", server)
        for path in (f"skills/{name}", f"commands/{name}-command"):
            await self("PUT", f"/api/v1/{path}", {"description": marker, "content": f"say {marker}"})

    async def _webhook(self) -> None:
        body = {"url": self._receiver.url(f"/{self._tenant.marker}"), "description": self._tenant.marker}
        self._tenant.ids["webhook_id"] = made = (await self("POST", "/api/v1/webhooks", body))["webhook_id"]
        self._tenant.ids["delivery_id"] = (await self("POST", f"/api/v1/webhooks/{made}/test"))["delivery_id"]

    async def _schedule(self) -> None:
        body = {"cron": "0 0 1 1 *", "prompt": self._tenant.marker, "name": self._tenant.marker}
        self._tenant.ids["schedule_id"] = (await self("POST", "/api/v1/schedules", body))["schedule_id"]

    async def _file(self) -> None:
        client, tenant = self._fleet[0].client, self._tenant
        content, params = tenant.marker.encode(), {"name": tenant.marker}
        made = await client.post("/api/v1/files", content=content, params=params, headers=tenant.keys["full"])
        tenant.ids["file_id"] = made.json()["file_id"]

    async def _session(self) -> None:
        ids, marker = self._tenant.ids, self._tenant.marker
        labels = {"title": TITLE, "tags": TAGS, "metadata": {"k": marker}}
        config = {"system_prompt": marker, "env": {"A": marker}, **WRITES}
        ids["session_id"] = made = (await self("POST", "/api/v1/sessions", {**labels, **config}))["session_id"]
        body = {"prompt": f"write {marker}.txt: {marker}", "session_id": made}
        ids["run_id"] = (await self("POST", "/api/v1/query/single", body))["run_id"]
        told = (await self("GET", f"/api/v1/sessions/{made}/messages"))["data"]
        ids["message_uuid"] = next(one["uuid"] for one in told if one.get("uuid") not in (None, ids["run_id"]))
        (checkpoint,) = (await self("GET", f"/api/v1/sessions/{made}/checkpoints"))["data"]
        ids["checkpoint_id"] = checkpoint["checkpoint_id"]
        listed = await self("GET", "/api/v1/sessions?limit=1")
        self._tenant.names["cursor"] = listed["next_cursor"] or ""

    async def _request(self) -> None:
        made = (await self("POST", "/api/v1/sessions", {"title": self._tenant.marker}))["session_id"]
        await self("POST", f"/api/v1/sessions/{made}/query", {"prompt": f"run touch {self._tenant.marker}"})
        found: list[Any] = []

        async def asked() -> bool:
            found[:] = (await self("GET", f"/api/v1/sessions/{made}/requests"))["data"]
            return bool(found)

        await until(asked)
        self._tenant.ids |= {"asking_session_id": made, "request_id": found[0]["request_id"]}

    async def _dialects(self) -> None:
        prompt = f"say {self._tenant.marker}"
        started = await self("POST", "/compat/code-server/session/start", {"initial_prompt": prompt})
        self._tenant.ids["code_session_id"] = started["session_id"]
        executed = await self("POST", "/compat/execute-server/execute/", {"prompt": prompt})
        self._tenant.ids["execute_session_id"] = executed["session_id"]
        openai, model = "/compat/openai/v1", "claude-sonnet-5-5"
        talk = (await self("POST", f"{openai}/conversations", {"metadata": {"k": self._tenant.marker}}))["id"]
        asked = {"model": model, "input": prompt, "conversation": talk}
        self._tenant.ids["response_id"] = (await self("POST", f"{openai}/responses", asked))["id"]
        self._tenant.ids["conversation_id"] = talk
        items = (await self("GET", f"{openai}/conversations/{talk}/items"))["data"]
        self._tenant.ids["item_id"] = items[0]["id"]
        of = "/compat/managed-agents/v1"
        agent = await self("POST", f"{of}/agents", {"name": self._tenant.marker, "model": "claude-sonnet-5-5"})
        place = await self("POST", f"{of}/environments", {"name": self._tenant.marker})
        begin = {"agent": agent["id"], "environment_id": place["id"], "title": self._tenant.marker}
        managed = (await self("POST", f"{of}/sessions", begin))["id"]
        thread = (await self("GET", f"{of}/sessions/{managed}/threads"))["data"][0]["id"]
        safe = await self("POST", f"{of}/vaults", {"display_name": self._tenant.marker})
        auth = {"type": "static_bearer", "mcp_server_url": "https://a.example/mcp", "token": self._tenant.marker}
        token = await self("POST", f"{of}/vaults/{safe['id']}/credentials", {"auth": auth})
        mount = {"type": "file", "file_id": self._tenant.ids["file_id"]}
        mounted = await self("POST", f"{of}/sessions/{managed}/resources", mount)
        made = {"agent_id": agent["id"], "environment_id": place["id"], "thread_id": thread}
        made |= {"vault_id": safe["id"], "credential_id": token["id"], "resource_id": mounted["id"]}
        says = [{"type": "user.message", "content": [{"type": "text", "text": prompt}]}]
        wanted = {"name": self._tenant.marker, "initial_events": says, "vault_ids": [safe["id"]]}
        wanted |= {"agent": agent["id"], "environment_id": place["id"]}
        deployed = (await self("POST", f"{of}/deployments", wanted))["id"]
        run = await self("POST", f"{of}/deployments/{deployed}/run")
        made |= {"deployment_id": deployed, "deployment_run_id": run["id"], "deployed_session_id": run["session_id"]}
        self._tenant.ids |= {**made, "managed_session_id": managed}


async def settled(fleet: Fleet, tenant: Tenant) -> bool:
    """Whether nothing of what it has begun goes on, but for the run that waits for a person."""

    async def listed(path: str) -> Any:
        return (await fleet[0].get(path, headers=tenant.keys["full"])).json()["data"]

    states = {one["session_id"]: one["status"] for one in await listed("/sessions")}
    told = await listed(f"/webhooks/{tenant.ids['webhook_id']}/deliveries")
    asking = states.pop(tenant.ids["asking_session_id"])
    done = all(status == "idle" for status in states.values()) and asking == "requires_action"
    return done and all(one["status"] == "delivered" for one in told)


async def snapshot(fleet: Fleet, tenant: Tenant) -> dict[str, Any]:
    """What a tenant sees of its own things."""

    async def seen(path: str) -> Any:
        answer: httpx.Response = await fleet[0].get(path, headers=tenant.keys["full"])
        assert answer.status_code == 200, answer.text
        return _without(answer.json())

    paths = [f"/{part}" for part in PARTS]
    paths += [f"/sessions/{tenant.ids['session_id']}/{part}" for part in ("runs", "messages", "checkpoints")]
    paths += [f"/agents/{NAME}", f"/agents/{NAME}/versions", f"/webhooks/{tenant.ids['webhook_id']}/deliveries"]
    return {path: await seen(path) for path in paths}


def _without(value: Any) -> Any:
    """Without what the server changes by itself."""
    if isinstance(value, dict):
        return {name: _without(inner) for name, inner in value.items() if name not in OF_THE_SERVER}
    return [_without(inner) for inner in value] if isinstance(value, list) else value


@asynccontextmanager
async def two(fleet: Fleet, new_key: NewKey, receiver: Receiver) -> AsyncIterator[tuple[Tenant, Tenant]]:
    """The one that is not to be seen, and the other, furnished; what they have is removed again."""
    tenants = []
    for _ in range(2):
        name = f"tenant-{uuid4().hex}"
        more: dict[str, dict[str, Any]] = {
            "full": {},
            "revoked": {},
            "bound": {"profiles": ["readonly"]},
            "read": {"scopes": ("read",)},
        }
        tenants.append(Tenant(name, {kind: await new_key(name, **given) for kind, given in more.items()}))
    one, other = tenants
    await asyncio.gather(*(Furnisher(fleet, tenant, receiver).furnish() for tenant in tenants))
    await _revoke(fleet, tenants)
    try:
        await until(lambda: settled(fleet, one))
        yield one, other
    finally:
        for tenant in tenants:
            for name in ("session_id", "asking_session_id", "code_session_id", "execute_session_id"):
                path = f"/api/v1/sessions/{tenant.ids[name]}"
                await fleet[0].client.delete(path, headers=tenant.keys["full"])
            for name in ("managed_session_id", "deployed_session_id"):
                managed = f"/compat/managed-agents/v1/sessions/{tenant.ids[name]}"
                await fleet[0].client.delete(managed, headers=tenant.keys["full"])


async def _revoke(fleet: Fleet, tenants: list[Tenant]) -> None:
    for tenant in tenants:
        key_id = (await fleet[0].get("/whoami", headers=tenant.keys["revoked"])).json()["key_id"]
        assert (await fleet[0].post(f"/admin/keys/{key_id}/revoke")).is_success
