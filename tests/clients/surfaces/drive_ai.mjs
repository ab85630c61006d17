// Plays a scenario with the AI SDK's own chat, as `useChat` has it below React.
//
// node drive_ai.mjs ai6|ai7 NAME PARAMETERS

const [, , version, name, given] = process.argv;
const { AbstractChat, DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses, ...ai } = await import(version);
const parameters = JSON.parse(given);

class State {
  status = "ready";
  error = undefined;
  constructor(messages) {
    this.messages = messages;
  }
  pushMessage = (message) => (this.messages = [...this.messages, message]);
  popMessage = () => (this.messages = this.messages.slice(0, -1));
  replaceMessage = (index, message) =>
    (this.messages = this.messages.map((other, place) => (place === index ? message : other)));
  snapshot = (value) => structuredClone(value);
}

class Chat extends AbstractChat {
  constructor({ messages, ...options }) {
    super({ ...options, state: new State(messages) });
  }
}

const posts = [];
const counted = async (url, init) => {
  posts.push(`${init?.method ?? "GET"} ${new URL(url).pathname.split("/").pop()}`);
  if (posts.length > 20) throw new Error("it asks for ever");
  return fetch(url, init);
};

const chatOf = ({ id = parameters.chat, body = parameters.body, messages = [], ...options } = {}) =>
  new Chat({
    id,
    messages,
    transport: new DefaultChatTransport({
      api: `${parameters.base_url}/ui/chat`,
      headers: { Authorization: `Bearer ${parameters.api_key}` },
      body,
      fetch: counted,
    }),
    ...options,
  });

const textOf = (message) => (message?.parts ?? []).filter(({ type }) => type === "text").map(({ text }) => text).join("");
const toolsOf = (message) => message.parts.filter((part) => part.toolCallId);
const told = (chat) => ({
  status: chat.status,
  error: chat.error?.message ?? null,
  roles: chat.messages.map(({ role }) => role),
  text: textOf(chat.lastMessage),
  states: chat.lastMessage ? toolsOf(chat.lastMessage).map(({ state }) => state) : [],
  outputs: chat.lastMessage ? toolsOf(chat.lastMessage).map(({ output, errorText }) => output ?? errorText ?? null) : [],
  id: chat.lastMessage?.id ?? null,
  posts,
});

/** Until nothing has been asked of the server for a moment. */
const settled = async (chat, what = () => true) => {
  for (let quiet = 0; quiet < 5; ) {
    await new Promise((done) => setTimeout(done, 50));
    quiet = chat.status === "error" || (chat.status === "ready" && what()) ? quiet + 1 : 0;
  }
  return told(chat);
};

const passed = (gate) => fetch(gate).then((answer) => answer.text());

const asking = (chat) => toolsOf(chat.lastMessage).filter(({ state }) => state === "approval-requested");

const SCENARIOS = {
  async text({ prompts }) {
    const chat = chatOf();
    const texts = [];
    for (const text of prompts) {
      await chat.sendMessage({ text });
      texts.push(textOf(chat.lastMessage));
    }
    return { ...told(chat), texts };
  },

  async approvals({ prompt, decisions }) {
    const chat = chatOf({ sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses });
    await chat.sendMessage({ text: prompt });
    const asked = [];
    for (const decision of decisions) {
      await settled(chat);
      for (const part of asking(chat)) {
        asked.push(part.input);
        await chat.addToolApprovalResponse({ id: part.approval.id, ...decision });
      }
    }
    return { ...(await settled(chat)), asked };
  },

  async client_tool({ prompt, output }) {
    const chat = chatOf({
      sendAutomaticallyWhen: ai.lastAssistantMessageIsCompleteWithToolCalls,
      onToolCall: ({ toolCall: { toolName: tool, toolCallId } }) => void chat.addToolOutput({ tool, toolCallId, output }),
    });
    await chat.sendMessage({ text: prompt });
    return settled(chat, () => toolsOf(chat.lastMessage).every(({ state }) => state === "output-available"));
  },

  /** The connection breaks at a delta, and the page is loaded anew. */
  async resumed({ prompt, gate }) {
    let gated = null;
    const chat = chatOf({});
    const sending = chat.sendMessage({ text: prompt });
    while (!textOf(chat.lastMessage).includes("word5")) await new Promise((done) => setTimeout(done, 10));
    gated = passed(gate);
    await gated;
    await sending;
    const cut = told(chat);
    const again = chatOf({ messages: chat.messages.slice(0, 1) });
    for (let tries = 0; tries < 50; tries++) {
      again.clearError();
      await again.resumeStream();
      if (again.status === "ready") break;
      await new Promise((done) => setTimeout(done, 200));
    }
    return { ...told(again), cut };
  },

  /** The page is loaded anew while a person is asked. */
  async asked_after_reload({ prompt, gate }) {
    const first = chatOf();
    await first.sendMessage({ text: prompt });
    await passed(gate);
    const chat = chatOf({
      messages: first.messages.slice(0, 1),
      sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses,
    });
    await chat.resumeStream();
    const [part] = asking(chat);
    await chat.addToolApprovalResponse({ id: part.approval.id, approved: true });
    return settled(chat);
  },

  async two_tabs({ prompt }) {
    const options = { sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses };
    const one = chatOf(options);
    await one.sendMessage({ text: prompt });
    const other = chatOf({ ...options, messages: structuredClone(one.messages) });
    const [{ approval }] = asking(one);
    await Promise.all([one, other].map((chat) => chat.addToolApprovalResponse({ id: approval.id, approved: true })));
    return { ...(await settled(one)), other: await settled(other) };
  },

  async edit_and_regenerate({ prompts, edited }) {
    const chat = chatOf();
    for (const text of prompts) await chat.sendMessage({ text });
    await chat.sendMessage({ text: edited, messageId: chat.messages[2].id });
    await chat.sendMessage({ text: "recall" });
    const recalled = textOf(chat.lastMessage);
    const before = chat.lastMessage.id;
    await chat.regenerate();
    return { ...told(chat), recalled, before };
  },

  async stopped({ prompt }) {
    const chat = chatOf();
    const sending = chat.sendMessage({ text: prompt });
    while (!textOf(chat.lastMessage).includes("word2")) await new Promise((done) => setTimeout(done, 10));
    const headers = { Authorization: `Bearer ${parameters.api_key}` };
    const answer = await fetch(`${parameters.base_url}/ui/chat/${encodeURIComponent(parameters.chat)}/stop`, { method: "POST", headers });
    await sending;
    return { ...told(chat), stop: answer.status };
  },

  async refused() {
    const chat = chatOf({ body: { nonsense: 1 } });
    await chat.sendMessage({ text: "say hello" });
    return told(chat);
  },
};

console.log(JSON.stringify(await SCENARIOS[name](parameters)));
