export { Client, type ClientOptions, type PromptOptions } from "./client.js";
export {
  APIError,
  BadRequest,
  ClientError,
  Conflict,
  ConnectionFailed,
  Forbidden,
  NotFound,
  RateLimited,
  RunFailed,
  ServerError,
  Unauthorized,
  ValidationError,
  WebhookInvalid,
  type Failure,
  type Refusal,
} from "./errors.js";
export { Pages, type PageOf, type Paging } from "./pages.js";
export { Turn, type Answers, type Callbacks, type PermissionRequest, type QuestionRequest } from "./turn.js";
export { verifyWebhook, type VerifyOptions, type WebhookMessage } from "./webhook.js";
export type { Content, Files, PutOptions, UploadOptions } from "./files.js";
export type { EventsOptions, Prompt, Requests, Runs, Sessions, Usage } from "./sessions.js";
export type { DiffQuery, RunFilter, SessionFilter, UsageFilter } from "./sessions.js";
export type { Keys, Presets, Schedules, Webhooks } from "./admin.js";
export type { ApiKey, CallOptions, Exchange, MakingOptions } from "./transport.js";
export type * as api from "./schema.js";
export type { ErrorCode, Event, ResultData } from "./schema.js";
