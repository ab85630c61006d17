// Plays a scenario with the official TypeScript client: `drive.mjs NAME PARAMETERS`, see `test_managed`.

import Anthropic from "@anthropic-ai/sdk";

const TOOLSET = "agent_toolset_20260401";
const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
const says = (text) => ({ type: "user.message", content: [{ type: "text", text }] });
const told = (events) => events.map((event) => [event.id, event.type]);
const words = (events) =>
  events.filter((event) => event.type === "agent.message").flatMap((event) => event.content.map((block) => block.text));

async function begun(client, more = {}) {
  const agent = await client.beta.agents.create({
    name: "Coding Assistant",
    model: "claude-sonnet-5-5",
    tools: [{ type: TOOLSET }],
    ...more,
  });
  const environment = await client.beta.environments.create({
    name: "quickstart-env",
    config: { type: "cloud", networking: { type: "unrestricted" } },
  });
  return client.beta.sessions.create({ agent: agent.id, environment_id: environment.id, title: "Quickstart" });
}

async function listed(client, session) {
  const events = [];
  for await (const event of client.beta.sessions.events.list(session.id, { limit: 1000 })) events.push(event);
  return events;
}

async function steps(client, p) {
  const weigh = {
    type: "custom",
    name: "weigh",
    description: "Weighs a thing.",
    input_schema: { type: "object", properties: { thing: { type: "string" } }, required: ["thing"] },
  };
  const asks = { name: "bash", permission_policy: { type: "always_ask" } };
  const session = await begun(client, { tools: [{ type: TOOLSET, configs: [asks] }, weigh] });
  const stream = await client.beta.sessions.events.stream(session.id);
  await client.beta.sessions.events.send(session.id, { events: [says(p.prompt)] });
  const seen = [];
  for await (const event of stream) {
    seen.push(event);
    if (event.type !== "session.status_idle") continue;
    if (event.stop_reason.type !== "requires_action") break;
    for (const id of event.stop_reason.event_ids) {
      const call = seen.find((each) => each.id === id);
      const answer =
        call.type === "agent.custom_tool_use"
          ? { type: "user.custom_tool_result", custom_tool_use_id: id, content: [{ type: "text", text: "7 kg" }] }
          : { type: "user.tool_confirmation", tool_use_id: id, result: "allow" };
      await client.beta.sessions.events.send(session.id, { events: [answer] });
    }
  }
  return { seen: told(seen), listed: told(await listed(client, session)), texts: words(seen) };
}

async function reconnected(client, p) {
  const session = await begun(client);
  await client.beta.sessions.events.send(session.id, {
    events: [says("run echo before then stream 400 words every 20 ms")],
  });
  const seen = new Map();
  let connections = 0;
  let passed = false;
  let over = false;
  while (!over) {
    connections += 1;
    try {
      const stream = await client.beta.sessions.events.stream(session.id);
      for (const event of await listed(client, session)) {
        seen.set(event.id, event);
        over ||= event.type === "session.status_idle";
      }
      if (over) break;
      for await (const event of stream) {
        seen.set(event.id, event);
        if (event.type === "agent.tool_result" && !passed) {
          passed = true;
          await fetch(p.gate);
        }
        over = event.type === "session.status_idle";
        if (over) break;
      }
    } catch {
      await pause(0.5);
    }
  }
  const events = await listed(client, session);
  return { seen: told([...seen.values()]).sort(), listed: told(events).sort(), connections };
}

const [name, text] = process.argv.slice(2);
const parameters = JSON.parse(text);
const client = new Anthropic({ baseURL: parameters.base_url, apiKey: parameters.api_key });
console.log(JSON.stringify(await { steps, reconnected }[name](client, parameters)));
process.exit(0);
