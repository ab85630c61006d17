import { Pages, type Paging } from "./pages.js";
import { path, type CallOptions, type MakingOptions, type Transport } from "./transport.js";
import type * as api from "./schema.js";

type PromptFields = Partial<api.PromptBody> & Pick<api.PromptBody, "prompt">;

/** Presets: options by name that sessions begin with. The API calls them agents. */
export class Presets {
  constructor(private readonly transport: Transport) {}

  list(query: Paging & { search?: string } = {}, options: CallOptions = {}): Pages<api.PresetState> {
    return new Pages(this.transport, "/agents", query, options);
  }

  /** By id or name; the newest version if none is said. */
  get(preset: string, query: { version?: number } = {}, options: CallOptions = {}): Promise<api.PresetState> {
    return this.transport.json("GET", path`/agents/${preset}`, { query, ...options });
  }

  create(body: api.PresetBody, options: MakingOptions = {}): Promise<api.PresetState> {
    return this.transport.json("POST", "/agents", { json: body, making: true, ...options });
  }

  /** A new version with these options and no others. */
  replace(preset: string, body: api.PresetFields, options: CallOptions = {}): Promise<api.PresetState> {
    return this.transport.json("PUT", path`/agents/${preset}`, { json: body, repeatable: false, ...options });
  }

  /** A new version in which these options are changed. */
  update(preset: string, body: api.PresetFields, options: CallOptions = {}): Promise<api.PresetState> {
    return this.transport.json("PATCH", path`/agents/${preset}`, { json: body, repeatable: false, ...options });
  }

  async delete(preset: string, options: CallOptions = {}): Promise<void> {
    await this.transport.json("DELETE", path`/agents/${preset}`, { done: [404], ...options });
  }

  versions(preset: string, paging: Paging = {}, options: CallOptions = {}): Pages<api.PresetState> {
    return new Pages(this.transport, path`/agents/${preset}/versions`, paging, options);
  }

  /** What a prompt would run with. Nothing is run. */
  preview(body: PromptFields, options: CallOptions = {}): Promise<api.DryRun> {
    return this.transport.json("POST", "/agents/preview", { json: body, repeatable: true, ...options });
  }
}

/** Schedules: prompts that are sent at times of a clock. */
export class Schedules {
  constructor(private readonly transport: Transport) {}

  /** It acts for the key that makes it. */
  create(body: Partial<api.ScheduleBody> & Pick<api.ScheduleBody, "cron" | "prompt">, options: MakingOptions = {}): Promise<api.ScheduleDetails> {
    return this.transport.json("POST", "/schedules", { json: body, making: true, ...options });
  }

  /** With its next times, and what came of the newest. */
  get(scheduleId: string, options: CallOptions = {}): Promise<api.ScheduleDetails> {
    return this.transport.json("GET", path`/schedules/${scheduleId}`, options);
  }

  list(paging: Paging = {}, options: CallOptions = {}): Pages<api.ScheduleState> {
    return new Pages(this.transport, "/schedules", paging, options);
  }

  /** From now on it acts for the key that changes it. */
  update(scheduleId: string, body: Partial<api.SchedulePatch>, options: CallOptions = {}): Promise<api.ScheduleDetails> {
    return this.transport.json("PATCH", path`/schedules/${scheduleId}`, { json: body, ...options });
  }

  async delete(scheduleId: string, options: CallOptions = {}): Promise<void> {
    await this.transport.json("DELETE", path`/schedules/${scheduleId}`, { done: [404], ...options });
  }

  /** Fire it no more until it is resumed. */
  pause(scheduleId: string, options: CallOptions = {}): Promise<api.ScheduleDetails> {
    return this.transport.json("POST", path`/schedules/${scheduleId}/pause`, { repeatable: true, ...options });
  }

  resume(scheduleId: string, options: CallOptions = {}): Promise<api.ScheduleDetails> {
    return this.transport.json("POST", path`/schedules/${scheduleId}/resume`, { repeatable: true, ...options });
  }

  /** Fire it now, paused or not. */
  run(scheduleId: string, options: MakingOptions = {}): Promise<api.Firing> {
    return this.transport.json("POST", path`/schedules/${scheduleId}/run`, { making: true, ...options });
  }

  /** What came of its times, the newest first. */
  runs(scheduleId: string, paging: Paging = {}, options: CallOptions = {}): Pages<api.Firing> {
    return new Pages(this.transport, path`/schedules/${scheduleId}/runs`, paging, options);
  }
}

/** Webhooks: endpoints of yours that are told when sessions and runs change. Their messages: `verifyWebhook`. */
export class Webhooks {
  constructor(private readonly transport: Transport) {}

  /** The answer has the secret, this once. */
  create(body: api.WebhookBody, options: MakingOptions = {}): Promise<api.WebhookWithSecret> {
    return this.transport.json("POST", "/webhooks", { json: body, making: true, ...options });
  }

  get(webhookId: string, options: CallOptions = {}): Promise<api.WebhookState> {
    return this.transport.json("GET", path`/webhooks/${webhookId}`, options);
  }

  list(paging: Paging = {}, options: CallOptions = {}): Pages<api.WebhookState> {
    return new Pages(this.transport, "/webhooks", paging, options);
  }

  update(webhookId: string, body: api.WebhookPatch, options: CallOptions = {}): Promise<api.WebhookState> {
    return this.transport.json("PATCH", path`/webhooks/${webhookId}`, { json: body, ...options });
  }

  async delete(webhookId: string, options: CallOptions = {}): Promise<void> {
    await this.transport.json("DELETE", path`/webhooks/${webhookId}`, { done: [404], ...options });
  }

  /** A new secret. For 24 hours messages are signed with both. */
  rotate(webhookId: string, options: CallOptions = {}): Promise<api.WebhookWithSecret> {
    return this.transport.json("POST", path`/webhooks/${webhookId}/rotate`, options);
  }

  /** Send `webhook.test`. */
  test(webhookId: string, options: CallOptions = {}): Promise<api.Delivery> {
    return this.transport.json("POST", path`/webhooks/${webhookId}/test`, options);
  }

  /** What became of the messages of the last seven days, newest first. */
  deliveries(webhookId: string, paging: Paging = {}, options: CallOptions = {}): Pages<api.Delivery> {
    return new Pages(this.transport, path`/webhooks/${webhookId}/deliveries`, paging, options);
  }

  redeliver(webhookId: string, deliveryId: string, options: CallOptions = {}): Promise<api.Delivery> {
    return this.transport.json("POST", path`/webhooks/${webhookId}/deliveries/${deliveryId}/redeliver`, options);
  }
}

/** Keys of all tenants, for operators: they need the scope `admin`. */
export class Keys {
  constructor(private readonly transport: Transport) {}

  list(query: Paging & { tenant?: string } = {}, options: CallOptions = {}): Pages<api.KeyState> {
    return new Pages(this.transport, "/admin/keys", query, options);
  }

  get(keyId: string, options: CallOptions = {}): Promise<api.KeyState> {
    return this.transport.json("GET", path`/admin/keys/${keyId}`, options);
  }

  /** The answer has the secret, this once. It is not sent again when the connection breaks: look at the list then. */
  create(body: api.KeyBody, options: CallOptions = {}): Promise<api.KeySecret> {
    return this.transport.json("POST", "/admin/keys", { json: body, ...options });
  }

  update(keyId: string, body: api.KeyPatch, options: CallOptions = {}): Promise<api.KeyState> {
    return this.transport.json("PATCH", path`/admin/keys/${keyId}`, { json: body, ...options });
  }

  /** A new secret; the one before stays valid for the time that the body says. */
  rotate(keyId: string, body: api.RotateBody = {}, options: CallOptions = {}): Promise<api.KeySecret> {
    return this.transport.json("POST", path`/admin/keys/${keyId}/rotate`, { json: body, ...options });
  }

  revoke(keyId: string, options: CallOptions = {}): Promise<api.KeyState> {
    return this.transport.json("POST", path`/admin/keys/${keyId}/revoke`, { repeatable: true, ...options });
  }
}
