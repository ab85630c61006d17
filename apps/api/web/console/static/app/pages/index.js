// Every page: where it is, what it is called, and which scope it needs.

import { Audit } from "./audit.js";
import { Fleet } from "./fleet.js";
import { Inbox } from "./inbox.js";
import { Key } from "./key.js";
import { Keys } from "./keys.js";
import { New } from "./new.js";
import { Preset, Presets } from "./presets.js";
import { Runs } from "./runs.js";
import { Schedule, Schedules } from "./schedules.js";
import { Session } from "./session/index.js";
import { Sessions } from "./sessions.js";
import { Tenant, Tenants } from "./tenants.js";
import { Usage } from "./usage.js";
import { Webhook, Webhooks } from "./webhooks.js";

const SESSIONS = { path: "/sessions", name: "Sessions", icon: "sessions", draw: Sessions };

/** The menu. */
export const GROUPS = [
  ["Work", [
    SESSIONS,
    { path: "/inbox", name: "Inbox", icon: "inbox", draw: Inbox },
    { path: "/runs", name: "Runs", icon: "play", draw: Runs },
    { path: "/new", name: "New session", icon: "plus", draw: New, needs: "write" },
  ]],
  ["Configure", [
    { path: "/presets", name: "Presets", icon: "preset", draw: Presets },
    { path: "/schedules", name: "Schedules", icon: "clock", draw: Schedules },
    { path: "/webhooks", name: "Webhooks", icon: "webhook", draw: Webhooks },
    { path: "/usage", name: "Usage", icon: "usage", draw: Usage },
    { path: "/key", name: "This key", icon: "key", draw: Key },
  ]],
  ["Administer", [
    { path: "/fleet", name: "Fleet", icon: "fleet", draw: Fleet, needs: "admin" },
    { path: "/tenants", name: "Tenants", icon: "tenant", draw: Tenants, needs: "admin" },
    { path: "/keys", name: "Keys", icon: "key", draw: Keys, needs: "admin" },
    { path: "/audit", name: "Audit", icon: "audit", draw: Audit, needs: "admin" },
  ]],
];

export const ROUTES = [
  ["/", SESSIONS],
  ["/sessions/:id", { draw: Session }],
  ["/presets/:name", { draw: Preset }],
  ["/schedules/:id", { draw: Schedule }],
  ["/webhooks/:id", { draw: Webhook }],
  ["/tenants/:name", { draw: Tenant, needs: "admin" }],
  ...GROUPS.flatMap(([, pages]) => pages.map((page) => [page.path, page])),
];
