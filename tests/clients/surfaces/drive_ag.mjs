// Plays a scenario with AG-UI's own HttpAgent: node drive_ag.mjs NAME PARAMETERS

import { HttpAgent } from "@ag-ui/client";

const [, , name, given] = process.argv;
const parameters = JSON.parse(given);

const warnings = [];
console.warn = (...words) => warnings.push(words.join(" "));

const agentOf = (options = {}) =>
  new HttpAgent({
    url: `${parameters.base_url}/ag-ui/${parameters.agent}`,
    headers: { Authorization: `Bearer ${parameters.api_key}` },
    threadId: parameters.thread,
    ...options,
  });

/** One run of theirs, with what was told of it. */
const run = async (agent, input = {}, during = () => {}) => {
  const events = [];
  let error = null;
  const subscriber = {
    onEvent: ({ event }) => {
      events.push(event);
      during(event);
    },
    onRunErrorEvent: ({ event }) => void (error = event.message),
  };
  const failed = (await agent.runAgent({ forwardedProps: parameters.props ?? {}, ...input }, subscriber).catch((why) => why)) ?? {};
  if (failed instanceof Error) error = failed.message;
  return { types: events.map(({ type }) => type), end: events.at(-1) ?? null, events, error, result: failed.result ?? null };
};

/** The same, again while nobody answers: a connection that was kept may have been cut, which its next request learns. */
const patiently = async (agent) => {
  for (let tries = 1; ; tries++) {
    const told = await run(agent);
    if (!told.error || tries === 50) return told;
    await new Promise((done) => setTimeout(done, 200));
  }
};

const say = (agent, text) => agent.addMessage({ id: crypto.randomUUID(), role: "user", content: text });
const textOf = (agent) => agent.messages.filter(({ role }) => role === "assistant").at(-1)?.content ?? "";
const told = (agent) => ({
  roles: agent.messages.map(({ role }) => role),
  ids: agent.messages.map(({ id }) => id),
  text: textOf(agent),
  contents: agent.messages.map(({ content }) => content ?? null),
  results: agent.messages.filter(({ role }) => role === "tool").map(({ content }) => content),
  state: agent.state,
  warnings,
});
const interruptsOf = ({ end }) => end.outcome.interrupts;
const brief = ({ events, ...more }) => more;
const passed = (gate) => fetch(gate).then((answer) => answer.text());

const SCENARIOS = {
  async text({ prompts }) {
    const agent = agentOf();
    const runs = [];
    const texts = [];
    for (const text of prompts) {
      say(agent, text);
      runs.push(brief(await run(agent)));
      texts.push(textOf(agent));
    }
    return { ...told(agent), runs, texts };
  },

  async interrupts({ prompt, payloads }) {
    const agent = agentOf();
    say(agent, prompt);
    let last = await run(agent);
    const runs = [brief(last)];
    for (const payload of payloads) {
      const status = payload === null ? "cancelled" : "resolved";
      const resume = interruptsOf(last).map(({ id }) => ({ interruptId: id, status, ...(payload === null ? {} : { payload }) }));
      last = await run(agent, { resume });
      runs.push(brief(last));
    }
    return { ...told(agent), runs };
  },

  async front_end_tool({ prompt, tool, content }) {
    const agent = agentOf();
    say(agent, prompt);
    const first = await run(agent, { tools: [tool] });
    const toolCallId = first.end.outcome.pendingToolCallIds[0];
    agent.addMessage({ id: crypto.randomUUID(), role: "tool", toolCallId, content });
    const second = await run(agent, { tools: [tool] });
    return { ...told(agent), runs: [brief(first), brief(second)] };
  },

  async reconnected({ prompt, gate }) {
    const agent = agentOf();
    say(agent, prompt);
    process.on("unhandledRejection", () => {});
    process.on("uncaughtException", () => {});
    let gated;
    const first = await run(agent, {}, ({ type, delta }) => {
      if (type === "TEXT_MESSAGE_CONTENT" && delta.includes("word5")) gated ??= passed(gate);
    });
    await gated;
    const again = agentOf({ initialMessages: agent.messages.slice(0, 1) });
    const second = await patiently(again);
    return { ...told(again), first: brief(first), second: brief(second) };
  },

  async asked_after_reload({ prompt, gate }) {
    const first = agentOf();
    say(first, prompt);
    await run(first);
    await passed(gate);
    const agent = agentOf();
    const shown = await patiently(agent);
    const resume = interruptsOf(shown).map(({ id }) => ({ interruptId: id, status: "resolved", payload: { approved: true } }));
    const last = await run(agent, { resume });
    return { ...told(agent), shown: brief(shown), last: brief(last), user: first.messages[0].id };
  },

  async two_tabs({ prompt }) {
    const one = agentOf();
    say(one, prompt);
    const asked = await run(one);
    const resume = interruptsOf(asked).map(({ id }) => ({ interruptId: id, status: "resolved", payload: { approved: true } }));
    const other = agentOf({ initialMessages: structuredClone(one.messages) });
    const both = await Promise.all([run(one, { resume }), run(other, { resume })]);
    return { ...told(one), other: told(other), runs: both.map(brief) };
  },

  async state({ prompt, state }) {
    const agent = agentOf({ initialState: state });
    say(agent, prompt);
    await run(agent);
    const again = agentOf();
    await run(again);
    return { ...told(again), user: agent.messages[0].id };
  },
};

console.log(JSON.stringify(await SCENARIOS[name](parameters)));
