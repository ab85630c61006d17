// A request as a program would send it, ready to be pasted.

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** A command for a shell that streams the run. */
export function curl(server, body) {
  const json = JSON.stringify({ prompt: "Hello", ...body }, null, 2);
  return `curl -N ${quoted(`${server}api/v1/query`)} \\\n  -H "X-API-Key: $API_KEY" -H 'Content-Type: application/json' \\\n  -d ${quoted(json)}`;
}

/** A program that streams the run, and prints its events. */
export function python(server, body) {
  return `import json
import os

import httpx

body = ${literal({ prompt: "Hello", ...body })}
headers = {"X-API-Key": os.environ["API_KEY"]}
with httpx.stream("POST", ${text(`${server}api/v1/query`)}, json=body, headers=headers, timeout=None) as answer:
    if answer.is_error:
        raise SystemExit(answer.read().decode())
    for line in answer.iter_lines():
        if line.startswith("data: "):
            print(json.loads(line.removeprefix("data: ")))
`;
}

// JSON's escapes mean the same in Python, but for surrogates, which JSON.stringify leaves as the characters they are.
const text = (value) => JSON.stringify(value);

function literal(value, indent = "") {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "string") return text(value);
  if (typeof value !== "object") return String(value);
  const deeper = `${indent}    `;
  const rows = Array.isArray(value) ? value.map((one) => literal(one, deeper)) : Object.entries(value).map(([name, one]) => `${text(name)}: ${literal(one, deeper)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return rows.length ? `${open}\n${rows.map((row) => `${deeper}${row},\n`).join("")}${indent}${close}` : open + close;
}
