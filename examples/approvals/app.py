"""A person allows or denies what an agent wants to do, on a page: `uvicorn app:app`, then open it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from claude_agent_api import AsyncClient, Conflict
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import BaseModel

# Text of an agent goes into the page as text, never as HTML: it may have come from anywhere.
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Approvals</title>
<style>
  body { font: 1rem/1.5 system-ui; max-width: 42rem; margin: 2rem auto; padding: 0 1rem }
  form { display: flex; gap: .5rem }
  input { flex: 1; font: inherit; padding: .4rem }
  pre { white-space: pre-wrap; overflow-wrap: anywhere }
  .asked { border: 1px solid; border-radius: .5rem; padding: 0 1rem 1rem; margin: 1rem 0 }
</style>
<h1>Approvals</h1>
<form>
  <input name="text" aria-label="Task" value="run touch made.txt && echo made" required>
  <button>Start</button>
</form>
<main aria-live="polite"></main>
<script>
const main = document.querySelector("main");
const add = (name, text, parent = main) => {
  const made = document.createElement(name);
  made.textContent = text;
  parent.append(made);
  return made;
};
const post = async (path, body) => {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  if (!answer.ok) throw Error((await answer.json()).detail);
  return answer.json();
};

document.querySelector("form").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  const text = new FormData(submitted.target).get("text");
  main.replaceChildren();
  const { run } = await post("tasks", { text });
  const stream = new EventSource(`runs/${run}/events`);  // Cut off? It comes back, and goes on after the last event.
  const on = (name, does) => stream.addEventListener(name, (event) => does(JSON.parse(event.data)));
  on("permission_request", ask);
  on("action_resolved", ({ request_id, decision }) => {
    const asked = document.getElementById(request_id);
    asked?.querySelectorAll("button").forEach((button) => button.remove());
    if (asked) add("p", `Decided: ${decision}`, asked);
  });
  on("result", ({ result }) => add("pre", result));
  on("failed", ({ message }) => add("p", `It has failed: ${message}`));
  on("done", () => stream.close());
});

function ask({ session_id, request_id, tool_name, input }) {
  const asked = add("section", "");
  asked.id = request_id;
  asked.className = "asked";
  add("h2", `May ${tool_name} run?`, asked);
  add("pre", JSON.stringify(input, null, 2), asked);
  for (const [label, allow] of [["Allow", true], ["Deny", false]]) {
    add("button", label, asked).addEventListener("click", () => post("decisions", { session_id, request_id, allow }));
  }
}
</script>
"""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncClient() as app.state.agents:
        yield


app = FastAPI(lifespan=lifespan)


def agents_of(request: Request) -> AsyncClient:
    # Your login goes here: as it is, whoever reaches this page decides.
    agents: AsyncClient = request.app.state.agents
    return agents


Agents = Annotated[AsyncClient, Depends(agents_of)]


class Task(BaseModel):
    text: str


class Decision(BaseModel):
    session_id: str
    request_id: str
    allow: bool


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


@app.post("/tasks")
async def start(task: Task, agents: Agents) -> dict[str, str]:
    session = await agents.sessions.create(permission_mode="default")
    accepted = await agents.sessions.prompt(session["session_id"], task.text)
    return {"run": accepted["run_id"]}


@app.get("/runs/{run}/events")
async def events(run: str, agents: Agents, last_event_id: Annotated[str | None, Header()] = None) -> StreamingResponse:
    return StreamingResponse(told(agents, run, last_event_id), media_type="text/event-stream")


async def told(agents: AsyncClient, run: str, after: str | None) -> AsyncIterator[str]:
    """The run's events, under their own positions, so that a browser resumes by itself."""
    async with agents.runs.events(run, after=after) as stream:
        async for event in stream:
            # A browser has an event `error` of its own.
            name = "failed" if event["event"] == "error" else event["event"]
            yield f"id: {event['id']}\nevent: {name}\ndata: {json.dumps(event['data'])}\n\n"


@app.post("/decisions")
async def decide(decision: Decision, agents: Agents) -> dict[str, str]:
    said = {"decision": "allow"} if decision.allow else {"decision": "deny", "message": "A person has said no."}
    try:
        answered = await agents.requests.decide(decision.session_id, decision.request_id, said)  # type: ignore[arg-type]
    except Conflict:
        raise HTTPException(409, "Somebody else was faster, or nobody waits for it any more.") from None
    return {"status": answered["status"] if answered else "applied"}
