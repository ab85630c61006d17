// What the vendor's examples do, with the official client: `node drive.mjs BASE_URL KEY`. Prints what it saw, as JSON.
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const model = "claude-sonnet-5-5";
const seen = {};

const user = (content) => ({ role: "user", content });
const weigh = {
  name: "weigh",
  description: "Say what a thing weighs.",
  parameters: { type: "object", properties: { thing: { type: "string" } }, required: ["thing"] },
};
const call = 'use tool mcp__client__weigh {"thing": "a cat"}';

seen.models = (await client.models.list()).data.map((one) => one.id);

const answer = await client.chat.completions.create({ model, messages: [user("say hello")] });
seen.chat = answer.choices[0].message.content;

const stream = client.chat.completions.stream({ model, messages: [user("stream 5 words")] });
seen.streamed = (await stream.finalChatCompletion()).choices[0].message.content;

const runner = client.chat.completions.runTools({
  model,
  messages: [user(call)],
  tools: [{ type: "function", function: { ...weigh, function: () => "4 kg", parse: JSON.parse } }],
});
seen.tools = await runner.finalContent();

const response = client.responses.stream({ model, input: "stream 5 words" });
const numbers = [];
for await (const event of response) numbers.push(event.sequence_number);
seen.numbers = numbers;
seen.response = (await response.finalResponse()).output_text;

const background = await client.responses.create({ model, input: "hang after 2 words", background: true });
seen.queued = background.status;
for await (const event of await client.responses.retrieve(background.id, { stream: true })) {
  if (event.type === "response.output_text.delta") break;
}
seen.cancelled = (await client.responses.cancel(background.id)).status;

const talk = await client.conversations.create({ items: [user("my name is Ada")] });
seen.conversation = (await client.responses.create({ model, input: "recall", conversation: talk.id })).output_text;

try {
  await client.chat.completions.create({ model, messages: [user("say no")], temperature: 0.5 });
} catch (error) {
  seen.error = [error.status, error.param, error.code, typeof error.requestID];
}
console.log(JSON.stringify(seen));
