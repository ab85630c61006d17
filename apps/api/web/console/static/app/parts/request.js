// What an agent asks a person (or a program), and the answer, in place.

import { path, post } from "../api.js";
import { useMay } from "../auth.js";
import * as format from "../format.js";
import { useAction, useNow } from "../hooks.js";
import { classes, html, useState } from "../view.js";
import { Button } from "./button.js";
import { Given } from "./call.js";
import { Json } from "./code.js";
import { Area, Check, Text } from "./field.js";
import { Icon } from "./icon.js";
import { Failure } from "./states.js";

/**
 * One request that is open.
 *
 * @param request the fields of its event, with `type`: permission, question or client_tool.
 * @param answered is called when there is an answer, whoever gave it.
 * @param cwd directory of the agent, where that is known.
 */
export function Request({ request, answered, cwd, children }) {
  const writes = useMay("write");
  const [send, { busy, error }] = useAction(async (to, body) => {
    try {
      await post(to, body);
    } catch (refused) {
      // Somebody was faster, or nothing waits any more: either way it is over.
      if (refused.code === "request_resolved" || refused.code === "request_not_found") answered?.(refused);
      throw refused;
    }
    answered?.();
  });
  const Kind = { permission: Permission, question: Question, client_tool: ClientTool }[request.type];
  return html`<section class="request" id="request-${request.request_id}" aria-label=${`The agent asks: ${format.id(request.request_id)}`}>
    <div class="request-head">
      <${Icon} name=${request.type === "permission" ? "warn" : "ask"} />
      <h2 class="grow">${TITLES[request.type](request)}</h2>
      <${Left} until=${request.expires_at} />
    </div>
    ${children}
    ${Kind ? html`<${Kind} request=${request} send=${send} busy=${busy} writes=${writes} cwd=${cwd} />` : html`<${Json} value=${request} />`}
    ${!writes && html`<p class="hint">This key may read only. Answer with one that may write.</p>`}
    <${Failure} error=${error} />
  </section>`;
}

const TITLES = {
  permission: (request) => (request.title
    ? html`${format.visible(request.title)} <code>${format.visible(request.tool_name)}</code>` // its own name, whatever it calls itself
    : html`May the agent use <code>${format.visible(request.tool_name)}</code>?`),
  question: () => "The agent has a question",
  client_tool: (request) => html`The agent waits for your tool <code>${request.tool_name}</code>`,
};

function Left({ until }) {
  const now = useNow();
  if (!until) return null;
  const ms = Date.parse(until) - now;
  return html`<span class=${classes("small nowrap num", ms < 60_000 ? "bad-text" : "quiet")} title=${`Refused by itself at ${format.time(until)}`}>${ms > 0 ? `${format.duration(ms)} left` : "expiring"}</span>`;
}

const place = (request, rest) => path`/sessions/${request.session_id}` + rest;

function Permission({ request, send, busy, writes, cwd }) {
  const given = format.json(request.input ?? {});
  const [editing, edit] = useState(false);
  const [input, setInput] = useState(given);
  const [remember, setRemember] = useState(false);
  const [denying, deny] = useState(false);
  const [message, setMessage] = useState("");
  const [wrong, setWrong] = useState("");
  const decide = (body) => send(place(request, path`/permissions/${request.request_id}`), body);
  const allow = () => {
    const body = { decision: "allow" };
    if (remember) body.remember = true;
    if (editing && input !== given) {
      try {
        body.updated_input = JSON.parse(input);
      } catch (error) {
        return setWrong(`This is not JSON: ${error.message}`);
      }
    }
    return decide(body);
  };
  const refuse = (interrupt) => decide({ decision: "deny", ...(message && { message }), ...(interrupt && { interrupt }) });
  return html`
    ${request.description && !request.input?.file_path?.endsWith?.(request.description) && html`<p class="soft break">${request.description}</p>`}
    ${request.reason && html`<p class="soft small break">${request.reason}</p>`}
    ${request.blocked_path && html`<p class="soft small break">Path: <code>${request.blocked_path}</code></p>`}
    ${editing
      ? html`<${Area} label="Input of the tool, as JSON" value=${input} set=${(text) => (setInput(text), setWrong(""))} rows=${Math.min(12, input.split("\n").length + 1)} error=${wrong} spellcheck="false" class="mono" />`
      : html`<${Given} input=${request.input} cwd=${cwd} copy=${false} />`}
    ${writes && !denying && html`<div class="request-actions">
      <div class="row wrap">
        <${Button} kind="primary" busy=${busy} onClick=${allow}>Allow</>
        <${Button} disabled=${busy} onClick=${() => deny(true)}>Deny …</>
        ${!editing && html`<${Button} kind="quiet" disabled=${busy} onClick=${() => edit(true)}>Change the input</>`}
      </div>
      <${Check} label="Do not ask again in this session" value=${remember} set=${setRemember} />
    </div>`}
    ${writes && denying && html`<div class="stack tight">
      <${Text} label="What to tell the agent (optional)" value=${message} set=${setMessage} wide placeholder="It goes on without the tool, and reads this" maxlength="10000" />
      <div class="row wrap">
        <${Button} kind="danger" busy=${busy} onClick=${() => refuse(false)}>Deny</>
        <${Button} disabled=${busy} onClick=${() => refuse(true)}>Deny and stop the run</>
        <${Button} kind="quiet" disabled=${busy} onClick=${() => deny(false)}>Back</>
      </div>
    </div>`}`;
}

function Question({ request, send, busy, writes }) {
  const questions = request.questions ?? [];
  const [chosen, choose] = useState({});
  const [own, setOwn] = useState({});
  const [wrong, setWrong] = useState(false);
  const toggle = (question, label) => {
    setWrong(false);
    const before = chosen[question.question] ?? [];
    const next = question.multiSelect ? (before.includes(label) ? before.filter((one) => one !== label) : [...before, label]) : [label];
    choose({ ...chosen, [question.question]: next });
  };
  const answer = (event) => {
    event.preventDefault();
    const answers = {};
    for (const question of questions) {
      const words = own[question.question]?.trim();
      const all = question.multiSelect ? [...(chosen[question.question] ?? []), ...(words ? [words] : [])] : words ? [words] : (chosen[question.question] ?? []);
      if (all.length) answers[question.question] = question.multiSelect ? all : all[0];
    }
    if (!Object.keys(answers).length) return setWrong(true);
    return send(place(request, "/answer"), { request_id: request.request_id, answers });
  };
  return html`<form class="stack tight" onSubmit=${answer}>
    ${questions.map((question, number) => html`<fieldset class="options" disabled=${!writes}>
      <legend class="break">${question.question}</legend>
      ${(question.options ?? []).map((option) => html`<label class="option">
        <input type=${question.multiSelect ? "checkbox" : "radio"} name="${request.request_id}-${number}" checked=${(chosen[question.question] ?? []).includes(option.label)} onChange=${() => toggle(question, option.label)} />
        <span><span class="option-label">${option.label}</span>${option.description && html`<span class="option-text">${option.description}</span>`}</span>
      </label>`)}
      <${Text} label="In your own words" wide value=${own[question.question] ?? ""} set=${(text) => (setWrong(false), setOwn({ ...own, [question.question]: text }))} />
    </fieldset>`)}
    ${wrong && html`<p class="wrong-text" role="alert">Choose an answer, or write one.</p>`}
    ${writes && html`<div><${Button} type="submit" kind="primary" busy=${busy}>Answer</></div>`}
  </form>`;
}

function ClientTool({ request, send, busy, writes }) {
  const [content, setContent] = useState("");
  const [failed, setFailed] = useState(false);
  const submit = (event) => {
    event.preventDefault();
    return send(place(request, path`/tool-results/${request.request_id}`), { content, is_error: failed });
  };
  return html`<form class="stack tight" onSubmit=${submit}>
    <${Json} value=${request.input ?? {}} label="the input" copy=${false} />
    <p class="hint">A program that uses this API is expected to answer. You can do it in its place.</p>
    ${writes && html`<${Area} label="Result" value=${content} set=${setContent} rows="3" />
      <div class="row wrap"><${Button} type="submit" kind="primary" busy=${busy}>Send the result</><${Check} label="It has failed" value=${failed} set=${setFailed} /></div>`}
  </form>`;
}
