// A thread with an agent: AG-UI's `HttpAgent`, and buttons to allow or deny what the agent wants to do.

import { HttpAgent } from "@ag-ui/client";
import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";

// The thread is in the page's address: a page that is loaded anew is told its messages, and what is live of it.
const known = Boolean(location.hash);
if (!known) location.hash = crypto.randomUUID();

const agent = new HttpAgent({ url: "/ag-ui/helper", threadId: location.hash.slice(1) });

function Thread() {
  const [draft, setDraft] = useState("");
  const [messages, setMessages] = useState([]);
  const [interrupts, setInterrupts] = useState([]);
  const [status, setStatus] = useState("ready");

  const run = async (resume) => {
    setStatus("running");
    setInterrupts([]);
    await agent.runAgent({ resume }, {
      onMessagesChanged: ({ messages }) => setMessages([...messages]),
      onRunFinishedEvent: ({ event }) => setInterrupts(event.outcome?.interrupts ?? []),
      onRunErrorEvent: ({ event }) => setStatus(event.message),
    });
    setStatus((before) => (before === "running" ? "ready" : before));
  };

  useEffect(() => {
    if (known) run();
  }, []);

  const send = (event) => {
    event.preventDefault();
    agent.addMessage({ id: crypto.randomUUID(), role: "user", content: draft });
    setDraft("");
    // What is asked just now is passed over.
    run(interrupts.length ? interrupts.map(({ id }) => ({ interruptId: id, status: "cancelled" })) : undefined);
  };

  const decide = (approved) =>
    run(interrupts.map(({ id }) => ({ interruptId: id, status: "resolved", payload: { approved } })));

  return (
    <>
      <h1>Thread</h1>
      {messages.map((message) => (
        <section key={message.id} className={message.role}>
          <strong>{message.role}</strong>
          {message.toolCalls?.map(({ id, function: { name, arguments: given } }) => (
            <code key={id}>
              {name} {given}
            </code>
          ))}
          <p>{typeof message.content === "string" ? message.content : null}</p>
        </section>
      ))}
      {interrupts.map(({ id, message }) => (
        <p key={id}>{message}</p>
      ))}
      {interrupts.length > 0 && (
        <>
          <button onClick={() => decide(true)}>Allow</button>
          <button onClick={() => decide(false)}>Deny</button>
        </>
      )}
      <form onSubmit={send}>
        <input aria-label="Message" value={draft} onChange={(event) => setDraft(event.target.value)} />
        <button>Send</button>
      </form>
      <p role="status">{status}</p>
    </>
  );
}

createRoot(document.getElementById("root")).render(<Thread />);
