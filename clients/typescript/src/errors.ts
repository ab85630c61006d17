import type { ErrorCode, ErrorData, ResultData } from "./schema.js";

/** What every error of this client is. */
export class ClientError extends Error {
  override get name(): string {
    return this.constructor.name;
  }
}

/** Facts of an answer that is an error. */
export interface Refusal {
  status: number;
  /** Of the API; null where something else answered, for example a proxy. */
  code: ErrorCode | null;
  message: string;
  details: Record<string, unknown>;
  requestId: string | null;
  /** Seconds, as the header `Retry-After` says. */
  retryAfter: number | null;
}

/** The server has answered with an error. Its subclasses say of which kind. */
export class APIError extends ClientError {
  readonly status: number;
  readonly code: ErrorCode | null;
  readonly details: Record<string, unknown>;
  /** The first field or parameter that is wrong, where that is what is wrong. */
  readonly field: string | null;
  readonly requestId: string | null;
  readonly retryAfter: number | null;
  /** Whether the same request may succeed later, and can be sent again without harm. */
  readonly retryable: boolean;

  constructor(refusal: Refusal) {
    super(refusal.message);
    this.status = refusal.status;
    this.code = refusal.code;
    this.details = refusal.details;
    this.requestId = refusal.requestId;
    this.retryAfter = refusal.retryAfter;
    this.field = fieldOf(refusal.details);
    this.retryable = isRetryable(refusal);
  }
}

/** 400: the request cannot be understood. */
export class BadRequest extends APIError {}
/** 401: no key, or one that is unknown, revoked or expired. */
export class Unauthorized extends APIError {}
/** 403: the key may not do this. */
export class Forbidden extends APIError {}
/** 404: there is no such object of this tenant. */
export class NotFound extends APIError {}
/** 409: not as things are now. */
export class Conflict extends APIError {}
/** 422: a field or parameter is missing, unknown or out of range; see `field`. */
export class ValidationError extends APIError {}
/** 429: a limit, a quota or a budget is used up. */
export class RateLimited extends APIError {}
/** 5xx: the server, or what it needs, cannot answer now. */
export class ServerError extends APIError {}

/** There was no answer: no connection, or it broke, or nothing came for too long. */
export class ConnectionFailed extends ClientError {
  readonly retryable = true;
}

/** JSON of the API. @throws ConnectionFailed for what is none: something else has answered, or not all has come. */
export function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new ConnectionFailed(`The answer is not JSON: ${text.trim().slice(0, MOST_WORDS)}`, { cause: error });
  }
}

/** What a failed run tells. */
export interface Failure {
  code: ErrorCode;
  message: string;
  retryable: boolean;
  retryAfter: number | null;
  details: Record<string, unknown>;
  sessionId: string;
  runId: string;
  result: ResultData | null;
}

/** The run ended without success; `code` is `interrupted` where somebody stopped it. */
export class RunFailed extends ClientError implements Failure {
  readonly code: ErrorCode;
  /** Whether the same prompt may simply be sent again. Tools of the failed run may have had effects. */
  readonly retryable: boolean;
  readonly retryAfter: number | null;
  readonly details: Record<string, unknown>;
  readonly sessionId: string;
  readonly runId: string;
  /** What the agent told of the turn, where it told something. */
  readonly result: ResultData | null;

  constructor(failure: Failure) {
    super(failure.message);
    this.code = failure.code;
    this.retryable = failure.retryable;
    this.retryAfter = failure.retryAfter;
    this.details = failure.details;
    this.sessionId = failure.sessionId;
    this.runId = failure.runId;
    this.result = failure.result;
  }
}

/** A webhook's message is not genuine, or too old. */
export class WebhookInvalid extends ClientError {}

const KINDS: Record<number, new (refusal: Refusal) => APIError> = {
  400: BadRequest,
  401: Unauthorized,
  403: Forbidden,
  404: NotFound,
  409: Conflict,
  422: ValidationError,
  429: RateLimited,
};

/** What a wait helps with, of statuses where it does not in general. */
const LATER = ["preset_busy", "schedule_busy", "files_busy", "too_many_commands", "body_too_slow"];
/** What it does not help with, of statuses where it does in general. */
const NEVER = [
  "encryption_not_configured",
  "preview_unavailable",
  "budget_reached",
  "still_running",
  "too_many_wrong_keys",
];
/** What had no effect, whatever was asked for. */
const NOT_BEGUN = ["rate_limited", "too_many_streams", "too_many_bytes", "instance_full", "quota_exceeded"];

function isRetryable({ status, code, details, retryAfter }: Refusal): boolean {
  if (typeof details["run_id"] === "string") return false; // it tells of a run: the same request finds the same one
  const limited = status === 429 && (retryAfter !== null || code !== "quota_exceeded");
  const usual = [502, 503, 504].includes(status) || limited;
  return code === null ? usual : LATER.includes(code) || (usual && !NEVER.includes(code));
}

/** Whether the server says that the request has had no effect. */
export function wasNotBegun(error: unknown): boolean {
  return error instanceof APIError && error.code !== null && NOT_BEGUN.includes(error.code);
}

function fieldOf(details: Record<string, unknown>): string | null {
  const [first] = Array.isArray(details["errors"]) ? details["errors"] : [];
  return typeof first?.field === "string" ? first.field : null;
}

const MOST_WORDS = 500; // characters of what a stranger answered
const LONGEST_ERROR = 1024 * 1024; // characters

/** The error that an answer is. */
export async function refusalOf(response: Response): Promise<APIError> {
  const text = (await response.text().catch(() => "")).slice(0, LONGEST_ERROR);
  const Kind = KINDS[response.status] ?? (response.status >= 500 ? ServerError : APIError);
  const facts = {
    status: response.status,
    requestId: response.headers.get("X-Request-ID"),
    retryAfter: secondsOf(response.headers.get("Retry-After")),
  };
  try {
    const { error } = JSON.parse(text);
    const details = typeof error.details === "object" && error.details !== null ? error.details : {};
    return new Kind({ ...facts, code: error.code, message: String(error.message), details });
  } catch {
    const said = text.trim().slice(0, MOST_WORDS) || response.statusText || "no text";
    const message = `${response.status}, and not from the API: ${said}`;
    return new Kind({ ...facts, code: null, message, details: {} });
  }
}

const ENDS: Partial<Record<ErrorCode, new (refusal: Refusal) => APIError>> = {
  invalid_api_key: Unauthorized,
  session_deleted: Conflict,
  instance_full: ServerError,
  dependency_unavailable: ServerError,
};

/** Why the server ends a stream whose run goes on. Its status is 0. */
export function endOf({ code, message, details }: ErrorData): APIError {
  const Kind = ENDS[code] ?? Forbidden;
  return new Kind({ status: 0, code, message, details: details ?? {}, requestId: null, retryAfter: null });
}

function secondsOf(header: string | null): number | null {
  if (header === null) return null;
  const seconds = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(seconds, 0) : null;
}
