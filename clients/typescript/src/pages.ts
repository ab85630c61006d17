import { ClientError } from "./errors.js";
import type { CallOptions, Transport } from "./transport.js";

/** One page of a list, as the API answers it. */
export interface PageOf<T> {
  data: T[];
  next_cursor: string | null;
}

/** What a list may be asked for. */
export interface Paging {
  /** Rows of a page. */
  limit?: number;
  /** `next_cursor` of the page before. */
  cursor?: string;
}

/** All rows of a list, over all of its pages: each is asked for when its turn comes. */
export class Pages<T, Page extends PageOf<T> = PageOf<T>> implements AsyncIterable<T> {
  constructor(
    private readonly transport: Transport,
    private readonly path: string,
    private readonly query: Paging & object = {},
    private readonly options: CallOptions = {},
  ) {}

  /** The pages themselves, with what else stands on them. */
  async *pages(): AsyncGenerator<Page, void, undefined> {
    let { cursor } = this.query;
    for (;;) {
      const query = { ...this.query, cursor };
      const page = await this.transport.json<Page>("GET", this.path, { query, ...this.options });
      yield page;
      if (page.next_cursor === null) return;
      if (page.next_cursor === cursor) throw new ClientError(`The list ${this.path} does not go on.`);
      cursor = page.next_cursor;
    }
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    for await (const page of this.pages()) yield* page.data;
  }

  /** The rows as an array: the first ones, if there are more than `most`. */
  async toArray(most = 10_000): Promise<T[]> {
    const rows: T[] = [];
    if (most > 0) {
      for await (const row of this) if (rows.push(row) >= most) break;
    }
    return rows;
  }
}
