// Plays a scenario with the TypeScript client, in Node and in a browser: see scenarios.py.
//
// node drive.mjs NAME PARAMETERS

import { Client, verifyWebhook } from "../../clients/typescript/dist/index.js";

const told = (error) => ({
  kind: error.constructor.name,
  status: error.status ?? null,
  code: error.code ?? null,
  retryable: error.retryable ?? null,
  field: error.field ?? null,
});

const raised = async (work) => {
  try {
    await work();
    return null;
  } catch (error) {
    return told(error);
  }
};

/** A turn's text in pieces, and the error at its end. */
const words = async (turn) => {
  const words = [];
  const error = await raised(async () => {
    for await (const piece of turn.text()) words.push(piece);
  });
  return { words, error };
};

const passed = async (gate) => (await fetch(gate)).text();

const packed = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
const unpacked = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const bytesOf = async (response) => new Uint8Array(await response.arrayBuffer());

/** Read a turn's events, and its text beside them. */
async function read(turn, { gate, partials = [] } = {}) {
  const text = words(turn).then(({ words }) => words.join(""));
  const events = [];
  let deltas = 0;
  for await (const event of turn) {
    events.push([event.id, event.event]);
    if (event.event === "partial" && partials.includes(++deltas)) await passed(gate);
  }
  const answer = { events, text: await text, session_id: turn.sessionId, run_id: turn.runId, result: null };
  answer.error = await raised(async () => (answer.result = (await turn.result()).result));
  return answer;
}

const streamed = async (client, { prompt, title, gate, partials }) =>
  read(await client.prompt(prompt, title ? { title } : {}), { gate, partials });

const SCENARIOS = {
  async conversation(client, { first, second, title }) {
    const turn = await client.prompt(first, { title });
    const text = (await words(turn)).words.join("");
    const [one, two] = [await turn.result(), await client.ask(second, { sessionId: turn.sessionId })];
    return {
      session_id: turn.sessionId,
      streamed: text,
      results: [one.result, two.result],
      runs: [turn.runId, two.run_id],
    };
  },

  stream_cut: streamed,
  owner_killed: streamed,

  async permission_allowed(client, { session_id, prompt, gate }) {
    const asked = [];
    const turn = await client.prompt(prompt, {
      sessionId: session_id,
      onPermission: async (request) => {
        asked.push([request.tool_name, request.input]);
        await passed(gate);
        return request.allow();
      },
    });
    return { asked, ...(await read(turn)) };
  },

  async permission_denied(client, { prompt, message }) {
    const asked = [];
    const { result } = await client.ask(prompt, {
      permission_mode: "default",
      onPermission: (request) => {
        asked.push([request.tool_name, request.input]);
        return request.deny(message);
      },
    });
    return { asked, result };
  },

  async question_answered(client, { prompt, answer }) {
    const asked = [];
    const { result } = await client.ask(prompt, {
      onQuestion: ({ questions }) => {
        asked.push(...questions.map(({ question }) => question));
        return Object.fromEntries(questions.map(({ question }) => [question, answer]));
      },
    });
    return { asked, result };
  },

  async callback_raises(client, { prompt }) {
    const turn = await client.prompt(prompt, {
      permission_mode: "default",
      onPermission: () => {
        throw new Error("nobody to ask");
      },
    });
    const answer = { session_id: turn.sessionId, run_id: turn.runId, raised: null };
    await turn.result().catch((error) => (answer.raised = error.message));
    return answer;
  },

  async interrupted(client, { prompt }) {
    const turn = await client.prompt(prompt);
    const events = [];
    for await (const event of turn) {
      if (event.event === "partial" && !events.some(([, name]) => name === "partial")) await turn.interrupt();
      events.push([event.id, event.event]);
    }
    return { events, error: await raised(() => turn.result()), again: await raised(() => turn.interrupt()) };
  },

  async text_of_a_failure(client, { prompt }) {
    return words(await client.prompt(prompt));
  },

  async answer_lost(client, { prompt, title }) {
    const turn = await client.prompt(prompt, { title });
    return { result: (await turn.result()).result, session_id: turn.sessionId };
  },

  async told_to_wait(client, { prompt }) {
    return { result: (await client.ask(prompt)).result };
  },

  async told_to_wait_too_long(client, { prompt }) {
    const answer = {};
    answer.error = await raised(() =>
      client.ask(prompt).catch((error) => {
        answer.retry_after = error.retryAfter;
        throw error;
      }),
    );
    return answer;
  },

  async pages(client, { tag, limit }) {
    return { titles: (await client.sessions.list({ tag, limit }).toArray()).map(({ title }) => title) };
  },

  async files(client, { path, content, prompt, made, name }) {
    const { session_id: session } = await client.sessions.create({ permission_mode: "bypassPermissions" });
    const put = await client.files.put(session, path, new Blob([unpacked(content)]).stream());
    await client.ask(prompt, { sessionId: session });
    const listed = (await client.files.list(session, { recursive: true, limit: 2 }).toArray()).map((file) => file.path);
    const got = packed(await bytesOf(await client.files.get(session, made)));
    const missing = await raised(() => client.files.get(session, "not/there"));
    const file = await client.files.upload(new Blob([unpacked(content)]), { name });
    const uploaded = packed(await bytesOf(await client.files.download(file.file_id)));
    await client.files.deleteUpload(file.file_id);
    return { put, listed, got, missing, uploaded, name: file.name };
  },

  async fork_and_rewind(client, { first, second }) {
    const { session_id: session } = await client.sessions.create({
      permission_mode: "acceptEdits",
      enable_file_checkpointing: true,
    });
    const one = await client.ask(first, { sessionId: session });
    const two = await client.ask(second, { sessionId: session });
    const { last_seq } = await client.runs.get(one.run_id);
    const fork = await client.sessions.fork(session, { at_seq: last_seq });
    const recalled = (await client.ask("recall", { sessionId: fork.session_id })).result;
    const rewound = await client.sessions.rewind(session, { checkpoint_id: two.run_id });
    const restored = await (await client.files.get(session, "a.txt")).text();
    return { recalled, parent: fork.parent_session_id, session_id: session, rewound, restored };
  },

  async webhook(client, { url }) {
    const { webhook_id, secret } = await client.webhooks.create({ url, events: ["run.succeeded"] });
    await client.webhooks.test(webhook_id);
    return { webhook_id, secret };
  },

  async webhook_verified(client, { messages, webhook_id }) {
    await client.webhooks.delete(webhook_id);
    const verified = [];
    for (const { body, headers, secret } of messages) {
      const message = verifyWebhook(body, headers, secret);
      verified.push(await message.then(({ type }) => type, (error) => told(error).kind));
    }
    return { verified };
  },

  async mistakes(client, { base_url, api_key, wrong_key, odd_id, nobody_url, html_url }) {
    const at = (baseUrl, apiKey = api_key) => new Client({ baseUrl, apiKey, maxRetries: 0 });
    return {
      unknown_key: await raised(() => at(base_url, wrong_key).sessions.list().toArray()),
      bad_input: await raised(() => client.prompt("say hi", { timeout_seconds: -1 })),
      unknown_session: await raised(() => client.sessions.get(odd_id)),
      no_server: await raised(() => at(nobody_url).sessions.get(odd_id)),
      no_api: await raised(() => at(html_url).sessions.get(odd_id)),
    };
  },
};

/** What a scenario gives. */
export async function play(name, parameters) {
  const client = new Client({ baseUrl: parameters.base_url, apiKey: parameters.api_key });
  return SCENARIOS[name](client, parameters);
}

if (globalThis.process?.argv?.[1]?.endsWith("drive.mjs")) {
  const [, , name, parameters] = process.argv;
  console.log(JSON.stringify(await play(name, JSON.parse(parameters))));
}
