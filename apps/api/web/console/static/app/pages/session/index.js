// One session: its conversation, and all that belongs to it.

import { call, get, path, post } from "../../api.js";
import { useMay } from "../../auth.js";
import * as format from "../../format.js";
import { useAction, useLoad, useMedia, usePoll, useTitle } from "../../hooks.js";
import { Button } from "../../parts/button.js";
import { Icon } from "../../parts/icon.js";
import { Badge, Failure, Id, Loading } from "../../parts/states.js";
import { Tabs, panelOf } from "../../parts/tabs.js";
import { navigate, setQuery, to, usePlace } from "../../router.js";
import { classes, html, useEffect, useMemo, useRef, useState } from "../../view.js";
import { Changes } from "./changes.js";
import { Checkpoints } from "./checkpoints.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { DeleteSession, EditLabels, ForkDialog } from "./dialogs.js";
import { useFeed } from "./feed.js";
import { Files } from "./files.js";
import { active, open } from "./log.js";
import { Ports } from "./ports.js";
import { Setup } from "./setup.js";
import { Spent } from "./spent.js";
import { Timeline } from "./timeline.js";

export function Session({ id }) {
  const session = useLoad((signal) => get(path`/sessions/${id}`, {}, signal), [id]);
  useTitle(session.data ? format.sessionTitle(session.data) : "Session");
  if (!session.data) {
    return html`<div class="page">${session.error ? html`<${Failure} error=${session.error} retry=${session.reload} />` : html`<${Loading} />`}</div>`;
  }
  return html`<${Opened} key=${id} id=${id} session=${session.data} refresh=${session.reload} stale=${session.error} />`;
}

const TABS = [["timeline", "Timeline"], ["files", "Files"], ["changes", "Changes"], ["checkpoints", "Rewind"], ["setup", "Setup"], ["ports", "Ports"], ["spent", "Cost"]];

function Opened({ id, session, refresh, stale }) {
  const { query } = usePlace();
  const writes = useMay("write");
  const marked = Number(query.get("event")) || 0;
  const tab = query.get("tab") ?? (marked ? "timeline" : "chat");
  const { log, ready, state, error, earlier } = useFeed(id, session.last_seq, marked, refresh);
  const [pending, setPending] = useState([]);
  const [asked, ask] = useState(null); // a dialog
  const pictures = useRef(new Map());
  usePoll(refresh, 15_000);

  // What was sent is shown until its run tells it itself.
  const waiting = pending.filter(({ run }) => {
    const known = log.runs.get(run);
    return !known || known.status === "queued";
  });
  useEffect(() => {
    if (waiting.length !== pending.length) setPending(waiting);
  }, [log.version]);

  const running = active(log, session);
  const live = Boolean(running) || session.status === "running";
  const still = useMemo(() => ({
    session: id,
    marked,
    writes,
    live: false,
    refresh,
    cwd: log.state.cwd,
    base: session.config?.cwd ?? "",
    pictures: pictures.current,
    fork: (entry) => ask({ kind: "fork", entry }),
    show: (name, more = {}) => setQuery({ tab: name, ...more }),
  }), [id, marked, writes, log.state.cwd]);
  const at = { ...still, still, live, drafts: log.drafts, version: log.version };

  const send = async (content, policy, text, urls) => {
    const sent = await post(path`/sessions/${id}/query`, { prompt: content, on_busy: policy }, { once: true });
    if (urls.length) pictures.current.set(sent.run_id, urls);
    setPending((old) => [...old, { run: sent.run_id, text: text || "(pictures)" }]);
    refresh();
  };
  const [stop, stopping] = useAction(() => post(path`/sessions/${id}/interrupt`, {}));
  const waits = open(log).length;
  const beside = useMedia("(min-width: 1081px)"); // the conversation and one panel
  const chosen = tab === "chat" && beside ? "timeline" : tab;
  const tabs = [...(beside ? [] : [["chat", "Chat"]]), ...TABS.map(([name, text]) => [name, text, COUNTS[name]?.(session, log)])];
  const panel = { id, session, log, at, marked, writes, refresh, earlier };

  return html`<div class="session">
    <header class="session-head">
      <div class="row between wrap">
        <div class="row grow">
          <a class="crumb" href=${to("/sessions")}>Sessions</a><span class="quiet" aria-hidden="true">/</span>
          <h1 class="clip" tabindex="-1">${format.sessionTitle(session)}</h1>
          <${Badge} status=${waits ? "requires_action" : running?.status ?? session.status} />
        </div>
        <div class="row">
          <${Connection} state=${state} ready=${ready} />
          ${writes && html`
            <${Button} small icon="edit" label="Title and labels" onClick=${() => ask({ kind: "labels" })} />
            <${Button} small icon="fork" label="Fork" onClick=${() => ask({ kind: "fork" })} />
            <${Button} small icon="trash" label="Delete" onClick=${() => ask({ kind: "delete" })} />`}
        </div>
      </div>
      <div class="row wrap session-facts small">
        <${Id} value=${id} what="session's id" />
        <span class="soft">${session.model}</span>
        <span class="soft">${session.permission_mode}</span>
        ${session.agent && html`<a href=${to(`/presets/${session.agent.name}`)}>${session.agent.name}@${session.agent.version}</a>`}
        ${session.profile && html`<span class="soft">profile ${session.profile}</span>`}
        <span class="num soft">${format.plural(session.num_turns, "turn")}</span>
        <span class="num soft">${format.money(session.total_cost_usd)}</span>
        ${session.parent_session_id && html`<a href=${to(`/sessions/${session.parent_session_id}`)}>fork of ${format.id(session.parent_session_id)}</a>`}
        ${session.tags.map((tag) => html`<span class="tag">${tag}</span>`)}
      </div>
      <${Failure} error=${error ?? stale ?? stopping.error} close=${stopping.error ? stopping.clear : undefined} />
    </header>
    <div class="session-body" data-tab=${tab}>
      <section class="chat" aria-label="Conversation and prompt">
        <${Conversation} log=${log} at=${at} ready=${ready} earlier=${earlier} pending=${waiting} />
        ${writes ? html`<${Composer} busy=${live || waits > 0} send=${send} first=${query.get("prompt")} stop=${stop} stopping=${stopping.busy} />` : html`<p class="read-only small soft">This key may read only.</p>`}
      </section>
      <section class="panel" aria-label="Details">
        <${Tabs} label="About this session" tabs=${tabs} chosen=${chosen} choose=${(name) => setQuery({ tab: name === "chat" ? "" : name, path: "" })} of="session" />
        <div class="panel-body" ...${panelOf("session", chosen)}><${PANELS[chosen] ?? Timeline} ...${panel} /></div>
      </section>
    </div>
    ${asked?.kind === "fork" && html`<${ForkDialog} session=${session} entry=${asked.entry} run=${log.runs.get(asked.entry?.run)} close=${() => ask(null)} />`}
    ${asked?.kind === "labels" && html`<${EditLabels} session=${session} close=${() => (ask(null), refresh())} />`}
    ${asked?.kind === "delete" && html`<${DeleteSession} session=${session} close=${() => ask(null)} />`}
  </div>`;
}

const PANELS = { timeline: Timeline, files: Files, changes: Changes, checkpoints: Checkpoints, setup: Setup, ports: Ports, spent: Spent };
const COUNTS = { ports: (session, log) => (log.state.ports ?? session.ports).length };

const SAID = { live: "Live", cut: "Reconnecting", "": "Connecting" };

function Connection({ state, ready }) {
  return html`<span class=${classes("connection small", state === "live" && ready ? "good" : "soft")} role="status">
    <span class=${classes("dot", state !== "live" && "pulse")}></span>${SAID[state]}</span>`;
}
