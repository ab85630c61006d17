// A chat with an agent: `useChat`, and buttons to allow or deny what the agent wants to do.

import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses } from "ai";
import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";

// The chat is in the page's address, and its messages in this browser: a page that is loaded anew goes on with it.
if (!location.hash) location.hash = crypto.randomUUID();
const id = location.hash.slice(1);
const kept = JSON.parse(localStorage.getItem(id) ?? "[]");

const transport = new DefaultChatTransport({
  api: "/ui/chat",
  body: { permission_mode: "default" },
});

function Chat() {
  const [draft, setDraft] = useState("");
  const chat = useChat({
    id,
    messages: kept,
    transport,
    resume: kept.length > 0,
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses,
  });

  useEffect(() => localStorage.setItem(id, JSON.stringify(chat.messages)), [chat.messages]);

  const send = (event) => {
    event.preventDefault();
    chat.sendMessage({ text: draft });
    setDraft("");
  };

  return (
    <>
      <h1>Chat</h1>
      {chat.messages.map((message) => (
        <section key={message.id} className={message.role}>
          <strong>{message.role}</strong>
          {message.parts.map((part, place) => (
            <Part key={place} part={part} decide={chat.addToolApprovalResponse} />
          ))}
        </section>
      ))}
      {chat.error && <p role="alert">{chat.error.message}</p>}
      <form onSubmit={send}>
        <input aria-label="Message" value={draft} onChange={(event) => setDraft(event.target.value)} />
        <button>Send</button>
        {/* `chat.stop` only leaves: this ends what the agent does. */}
        <button type="button" onClick={() => fetch(`/ui/chat/${id}/stop`, { method: "POST" })}>
          Stop
        </button>
      </form>
      <p role="status">{chat.status}</p>
    </>
  );
}

function Part({ part, decide }) {
  if (part.type === "text") return <p>{part.text}</p>;
  if (part.type === "reasoning") return <p><em>{part.text}</em></p>;
  if (part.type !== "dynamic-tool") return null;
  return (
    <div>
      <code>
        {part.toolName} {JSON.stringify(part.input)}: {part.state}
      </code>
      {part.state === "approval-requested" && (
        <>
          <button onClick={() => decide({ id: part.approval.id, approved: true })}>Allow</button>
          <button onClick={() => decide({ id: part.approval.id, approved: false })}>Deny</button>
        </>
      )}
      {part.state === "output-available" && <pre>{String(part.output)}</pre>}
    </div>
  );
}

createRoot(document.getElementById("root")).render(<Chat />);
