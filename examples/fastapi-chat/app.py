"""A chat with an agent, for the users of your own application: `uvicorn app:app`."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from claude_agent_api import AsyncClient, AsyncTurn, ClaudeAgentError, NotFound, ValidationError
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

# Your login goes here: whoever calls is one of your users, and never sees the key of the agents' server.
USERS = {"token-of-ada": "ada", "token-of-bob": "bob"}

OPTIONS: dict[str, Any] = {
    "tools": [],  # It talks, and does nothing. Name tools, or an operator's `profile`, for an agent that works.
    "unattended": True,  # Nobody is there to be asked for permission.
    "system_prompt": "You answer customers of a bicycle shop, in a few sentences.",
}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncClient() as app.state.agents:
        yield


app = FastAPI(lifespan=lifespan)


def agents_of(request: Request) -> AsyncClient:
    agents: AsyncClient = request.app.state.agents
    return agents


def user_of(authorization: Annotated[str, Header()] = "") -> str:
    if user := USERS.get(authorization.removeprefix("Bearer ")):
        return user
    raise HTTPException(401, "Sign in first.")


Agents = Annotated[AsyncClient, Depends(agents_of)]
User = Annotated[str, Depends(user_of)]


class Message(BaseModel):
    text: str
    conversation: str | None = None


@app.post("/chat")
async def chat(message: Message, user: User, agents: Agents) -> StreamingResponse:
    """Server-sent events: `conversation` first, `text` as it comes, then `done` or `failed`."""
    if message.conversation is None:
        session = await agents.sessions.create(title=message.text[:80], metadata={"user": user}, **OPTIONS)
    else:
        session = await mine(agents, user, message.conversation)
    turn = await agents.prompt(message.text, session_id=session["session_id"])
    return StreamingResponse(told(turn), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@app.get("/conversations")
async def conversations(user: User, agents: Agents) -> list[dict[str, str]]:
    """This user's, the newest first."""
    found = agents.sessions.list(metadata={"user": user})
    return [{"conversation": session["session_id"], "title": session["title"] or ""} async for session in found]


async def mine(agents: AsyncClient, user: str, conversation: str) -> Any:
    """The session, if it is this user's: the key may see those of all your users, so this line is the wall."""
    try:
        session = await agents.sessions.get(conversation)
    except (NotFound, ValidationError):
        raise HTTPException(404, "No such conversation.") from None
    if session["metadata"].get("user") != user:
        raise HTTPException(404, "No such conversation.")
    return session


async def told(turn: AsyncTurn) -> AsyncIterator[str]:
    """A user who leaves stops nothing: the answer is in the conversation when they come back."""
    yield event("conversation", turn.session_id)
    try:
        async with turn:
            async for text in turn.text():
                yield event("text", text)
        yield event("done", None)
    except ClaudeAgentError as error:
        yield event("failed", str(error))


def event(name: str, data: str | None) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
