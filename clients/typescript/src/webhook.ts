import { WebhookInvalid } from "./errors.js";
import { cryptography } from "./transport.js";
import type { webhooks } from "./schema.js";

type Bodies = { [Name in keyof webhooks]: webhooks[Name] extends Told<infer Body> ? Body : never };
type Told<Body> = { post: { requestBody: { content: { "application/json": Body } } } };

/** What a webhook is told, by `type`. */
export type WebhookMessage = Bodies[keyof Bodies];

export interface VerifyOptions {
  /** Seconds that a message may be old, or ahead of this clock. */
  toleranceSeconds?: number;
  /** Seconds since 1970, where the clock of the machine is not meant. */
  now?: number;
}

const MOST_SIGNATURES = 16;

/**
 * The message that a webhook was sent, if it is genuine. A message may come twice: remember its `delivery_id`.
 *
 * @param body as it came, not parsed.
 * @param headers of the request; their names in any case.
 * @param secret as `webhooks.create` or `rotate` has shown it.
 * @throws WebhookInvalid when it was signed with another secret, was changed, or is older than the tolerance.
 */
export async function verifyWebhook(
  body: string | Uint8Array,
  headers: Headers | Record<string, string | string[] | undefined>,
  secret: string,
  { toleranceSeconds = 300, now = Date.now() / 1000 }: VerifyOptions = {},
): Promise<WebhookMessage> {
  const names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
  const [id, timestamp, signatures] = names.map((name) => of(headers, name));
  if (!id || !timestamp || !signatures) throw new WebhookInvalid("It has no signature.");
  const bytes = typeof body === "string" ? encoded(body) : body;
  const { subtle } = await cryptography();
  const key = await subtle.importKey("raw", decoded(secret.replace(/^whsec_/, "")), HMAC, false, ["verify"]);
  const signed = joined(encoded(`${id}.${timestamp}.`), bytes);
  let genuine = false;
  for (const signature of signatures.split(" ").slice(0, MOST_SIGNATURES)) {
    if (!signature.startsWith("v1,")) continue;
    const given = decodedOrNone(signature.slice(3));
    if (given && (await subtle.verify("HMAC", key, given, signed))) genuine = true; // compares in constant time
  }
  if (!genuine) throw new WebhookInvalid("It was not signed with this secret, or was changed since.");
  if (!/^\d{1,12}$/.test(timestamp) || Math.abs(now - Number(timestamp)) > toleranceSeconds) {
    throw new WebhookInvalid(`It is not of the last ${toleranceSeconds} s.`);
  }
  return JSON.parse(new TextDecoder().decode(bytes)) as WebhookMessage;
}

const HMAC = { name: "HMAC", hash: "SHA-256" };

const encoded = (text: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(text);

function of(headers: Headers | Record<string, string | string[] | undefined>, name: string): string | undefined {
  if (headers instanceof Headers) return headers.get(name) ?? undefined;
  const found = Object.entries(headers).find(([given]) => given.toLowerCase() === name)?.[1];
  return Array.isArray(found) ? found[0] : found;
}

function joined(one: Uint8Array, other: Uint8Array): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(one.length + other.length);
  all.set(one);
  all.set(other, one.length);
  return all;
}

function decoded(base64: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function decodedOrNone(base64: string): Uint8Array<ArrayBuffer> | null {
  try {
    return decoded(base64);
  } catch {
    return null;
  }
}
