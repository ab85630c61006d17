// What the clients make of streams that they are given: node replay.mjs ai6|ai7|ag-ui < STREAMS
// STREAMS: a JSON list of texts, each the answer to the next request. All approvals are given.

let input = "";
for await (const piece of process.stdin) input += piece;
const streams = JSON.parse(input);
const [, , client] = process.argv;
const warnings = [];
console.warn = (...words) => warnings.push(words.join(" "));

let asked = 0;
globalThis.fetch = async () => {
  const text = streams[asked++];
  if (text === undefined) throw new Error("it asks for ever");
  return new Response(text, { headers: { "content-type": "text/event-stream" } });
};

if (client === "ag-ui") {
  const { HttpAgent } = await import("@ag-ui/client");
  const agent = new HttpAgent({ url: "http://x/", threadId: "t" });
  agent.addMessage({ id: "m", role: "user", content: "hi" });
  let end, error, resume;
  while (asked < streams.length) {
    const subscriber = { onEvent: ({ event }) => void (end = event) };
    await agent.runAgent({ resume }, subscriber).catch((why) => (error = why.message));
    if (error) break;
    resume = end.outcome?.interrupts?.map(({ id }) => ({ interruptId: id, status: "resolved", payload: { approved: true } }));
  }
  console.log(JSON.stringify({ error: error ?? null, warnings, end, messages: agent.messages }));
} else {
  const { AbstractChat, DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses } = await import(client);
  const state = {
    messages: [],
    status: "ready",
    pushMessage: (message) => (state.messages = [...state.messages, message]),
    popMessage: () => (state.messages = state.messages.slice(0, -1)),
    replaceMessage: (index, message) => (state.messages = state.messages.with(index, message)),
    snapshot: structuredClone,
  };
  class Chat extends AbstractChat {}
  const chat = new Chat({
    id: "c",
    state,
    transport: new DefaultChatTransport({ api: "http://x/" }),
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses,
  });
  await chat.sendMessage({ text: "hi" });
  for (let quiet = 0; quiet < 5; quiet++) {
    const parts = chat.lastMessage.parts.filter(({ state }) => state === "approval-requested");
    for (const { approval } of parts) await chat.addToolApprovalResponse({ id: approval.id, approved: true });
    if (parts.length) quiet = 0;
    await new Promise((done) => setTimeout(done, 20));
  }
  console.log(JSON.stringify({ error: chat.error?.message ?? null, warnings, asked, status: chat.status, messages: chat.messages }));
}
