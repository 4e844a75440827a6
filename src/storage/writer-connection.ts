import pg from 'pg';
import { refuseStandby } from './pool.ts';

/**
 * One connection of its own for group commit, made again when it breaks. The statements join a handful of rows with
 * large tables by their keys: a plan that scans those tables is never right, so such plans are switched off here.
 */
export class WriterConnection {
  readonly #config: pg.ClientConfig;
  readonly #onError: (error: Error) => void;
  #client: Promise<pg.Client> | undefined;
  #closed = false;

  constructor(config: pg.ClientConfig, onError: (error: Error) => void) {
    this.#config = config;
    this.#onError = onError;
  }

  async query(name: string, text: string, values: unknown[]): Promise<pg.QueryResult> {
    const client = await this.#connected();
    try {
      return await client.query({ name, text, values });
    } catch (error) {
      // Refused by the database: the connection is fine. Anything else: nobody knows what it did, start anew.
      if (!isDatabaseRefusal(error)) this.#drop(client);
      throw error;
    }
  }

  async close(): Promise<void> {
    this.#closed = true;
    const client = await this.#client?.catch(() => undefined);
    await client?.end().catch(() => undefined);
  }

  async #connected(): Promise<pg.Client> {
    if (this.#closed) throw new Error('the writer is closed');
    if (this.#client === undefined) {
      const connecting = this.#connect();
      this.#client = connecting;
      connecting.catch(() => {
        if (this.#client === connecting) this.#client = undefined;
      });
    }
    return await this.#client;
  }

  async #connect(): Promise<pg.Client> {
    const client = new pg.Client(this.#config);
    client.on('error', (error) => {
      this.#onError(error);
      this.#drop(client);
    });
    try {
      await client.connect();
      await refuseStandby(client);
      // The arrays' lengths change nothing about the plan, and planning anew costs more than the statement itself.
      await client.query(
        'SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET plan_cache_mode = force_generic_plan',
      );
    } catch (error) {
      client.end().catch(() => undefined);
      throw error;
    }
    return client;
  }

  #drop(client: pg.Client): void {
    this.#client = undefined;
    client.end().catch(() => undefined);
  }
}

/** An error that PostgreSQL itself sent about a statement, after which the connection goes on (SQLSTATE not 08, 57, 58). */
export function isDatabaseRefusal(error: unknown): boolean {
  const code = (error as { code?: unknown }).code;
  return error instanceof pg.DatabaseError && typeof code === 'string' && !/^(08|57|58|XX)/.test(code);
}
