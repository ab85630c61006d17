"""Skills and slash commands: those of the agent's own program, and those that tenants have stored.

A tenant's own reach the agents of its sessions as a plugin named `tenant`, so agents know them as `tenant:NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import StringConstraints

from apps.api import audit
from apps.api.core.codec import decode, encode, timestamp
from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.names import Text, confined
from apps.api.db import Database
from apps.api.errors import Conflict, NotFound, Problem

Kind = Literal["skill", "command"]

PLUGIN = "tenant"
BODY = "SKILL.md"
"""The path, among `files`, of the text that the agent is given when the skill or command is used."""

MAX_PER_TENANT = 100
"""Skills and commands together. All of them are written to disk when an agent starts."""

MAX_CHARS, MAX_FILES, MAX_FILES_CHARS = 100_000, 50, 200_000
"""Characters of one text; further files of a skill, and their characters together."""

Described = Annotated[Text, StringConstraints(pattern=r"^[^\x00-\x1f\x7f\x85\u2028\u2029]{1,1000}$")]
"""One line for the model."""


def check_files(further: Mapping[str, str]) -> None:
    """Whether the further files of a skill fit in a directory beside its BODY. Raises ValueError."""
    if sum(map(len, further.values())) > MAX_FILES_CHARS:
        raise ValueError(f"has more than {MAX_FILES_CHARS} characters")
    for path in further:
        if confined(path) != path or path in (".", BODY) or max(len(p.encode()) for p in path.split("/")) > 255:
            raise ValueError(f"has a path that cannot be used: {path}")
        if any(f"{path}/" == other[: len(path) + 1] for other in further):
            raise ValueError(f"has a path that is a file and a directory: {path}")


@dataclass(frozen=True, slots=True)
class Skill:
    """A tenant's own skill or command. `files` maps a relative path to its text; a command has its BODY only."""

    kind: Kind
    name: str
    description: str
    files: dict[str, str]


_PUT = """
INSERT INTO skills (tenant_id, kind, name, description, files) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (tenant_id, kind, name) DO UPDATE
  SET description = excluded.description, files = excluded.files, updated_at = now()
RETURNING xmax = 0
"""

_PUT_AS: Mapping[Kind, audit.Action] = {"skill": "skill.put", "command": "command.put"}
_DELETED_AS: Mapping[Kind, audit.Action] = {"skill": "skill.deleted", "command": "command.deleted"}


async def put(db: Database, tenant_id: UUID, skill: Skill) -> bool:
    """Store a skill or command, or replace it whole. Returns whether it is new.

    Raises:
        Conflict: `name_in_use` by the other kind, `too_many_skills`.
    """
    async with db.transaction() as connection:
        # Skills and commands share the agent's names, so writers of one tenant go one after another.
        await connection.execute("SELECT 1 FROM tenants WHERE id = $1 FOR NO KEY UPDATE", tenant_id)
        rows = await connection.fetch("SELECT kind, name FROM skills WHERE tenant_id = $1", tenant_id)
        taken = {(row["kind"], row["name"]) for row in rows}
        if any(name == skill.name and kind != skill.kind for kind, name in taken):
            raise Conflict("A skill and a command cannot have the same name.", code="name_in_use")
        if (skill.kind, skill.name) not in taken and len(taken) >= MAX_PER_TENANT:
            raise Conflict(f"A tenant has at most {MAX_PER_TENANT} skills and commands.", code="too_many_skills")
        new: bool = await connection.fetchval(_PUT, tenant_id, skill.kind, skill.name, skill.description, skill.files)
        await audit.note(connection, _PUT_AS[skill.kind], tenant_id, skill.name, new=new)
        return new


async def get(db: Database, tenant_id: UUID, kind: Kind, name: str) -> dict[str, Any]:
    """One of the tenant's own, with its texts. Raises NotFound."""
    row = await db.pool.fetchrow(
        "SELECT name, description, files, created_at, updated_at FROM skills"
        " WHERE tenant_id = $1 AND kind = $2 AND name = $3",
        tenant_id,
        kind,
        name,
    )
    if row is None:
        raise _missing(kind)
    files = dict(row["files"])
    return {
        **_listed(row["name"], row["description"]),
        "content": files.pop(BODY),
        "files": files,
        "created_at": timestamp(row["created_at"]),
        "updated_at": timestamp(row["updated_at"]),
    }


async def delete(db: Database, tenant_id: UUID, kind: Kind, name: str) -> None:
    """Remove one of the tenant's own. Raises NotFound."""
    async with db.transaction() as connection:
        status = await connection.execute(
            "DELETE FROM skills WHERE tenant_id = $1 AND kind = $2 AND name = $3", tenant_id, kind, name
        )
        if status != "DELETE 1":
            raise _missing(kind)
        await audit.note(connection, _DELETED_AS[kind], tenant_id, name)


def _missing(kind: Kind) -> NotFound:
    return NotFound.of("skill") if kind == "skill" else NotFound.of("command")


def _listed(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "qualified_name": f"{PLUGIN}:{name}",
        "description": description,
        "source": "tenant",
        "argument_hint": None,
    }


async def own(db: Database, tenant_id: UUID) -> list[Skill]:
    """All of a tenant's own, with their texts."""
    rows = await db.pool.fetch("SELECT kind, name, description, files FROM skills WHERE tenant_id = $1", tenant_id)
    return [Skill(row["kind"], row["name"], row["description"], row["files"]) for row in rows]


async def offered(db: Database, tenant_id: UUID, kind: Kind) -> list[dict[str, Any]]:
    """What sessions of this tenant may use: its own first, then those of the agent's program; each part by name."""
    rows = await db.pool.fetch(
        "SELECT name, description FROM skills WHERE tenant_id = $1 AND kind = $2 ORDER BY name", tenant_id, kind
    )
    found = await catalog(db)
    skills = set(found["skills"])
    image = [
        {
            "name": command["name"],
            "qualified_name": command["name"],
            "description": command["description"],
            "source": "image",
            "argument_hint": command["argument_hint"] or None,
        }
        for command in found["commands"]
        if (command["name"] in skills) == (kind == "skill")
    ]
    return [_listed(row["name"], row["description"]) for row in rows] + sorted(image, key=lambda s: str(s["name"]))


async def problems(db: Database, tenant_id: UUID, config: AgentConfig) -> list[Problem]:
    """Skills that are named and that sessions of this tenant do not have."""
    named = [(field, name) for field, names in config.skill_names().items() for name in names]
    if not named:
        return []
    found = await catalog(db)
    known = set(found["skills"])
    rows = await db.pool.fetch("SELECT name FROM skills WHERE tenant_id = $1 AND kind = 'skill'", tenant_id)
    known |= {f"{PLUGIN}:{row['name']}" for row in rows}
    # An empty catalog means that no runner has filled it yet: then only the tenant's own can be judged.
    judged = [(field, name) for field, name in named if found["skills"] or name.startswith(f"{PLUGIN}:")]
    why = "there is no skill named {}; GET /skills lists them"
    return [Problem(field, "validation_error", why.format(name)) for field, name in judged if name not in known]


async def catalog(db: Database) -> dict[str, Any]:
    """What the newest agent program offers; all empty until a runner has stored it.

    Returns:
        `skills`: names; `commands`, skills among them: `name`, `description`, `argument_hint`;
        `models`: as the program describes them, `value` being the name to ask for; `cli_version`.
    """
    row = await db.pool.fetchrow("SELECT cli_version, data FROM catalog ORDER BY created_at DESC LIMIT 1")
    if row is None:
        return {"cli_version": None, "skills": [], "commands": [], "models": []}
    return {"cli_version": row["cli_version"], **decode(row["data"])}


async def is_catalogued(db: Database, cli_version: str) -> bool:
    """Whether `store_catalog` has been called for this version of the agent's program."""
    found: bool = await db.pool.fetchval("SELECT EXISTS (SELECT 1 FROM catalog WHERE cli_version = $1)", cli_version)
    return found


async def store_catalog(db: Database, cli_version: str, data: dict[str, Any]) -> None:
    """Store what the agent's program of this version offers, unless it is there: `skills`, `commands`, `models`."""
    await db.pool.execute(
        "INSERT INTO catalog (cli_version, data) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        cli_version,
        encode(data).decode(),
    )
