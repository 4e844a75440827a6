import pg from 'pg';
import { BrokerError } from '../domain/errors.ts';

export interface DatabaseOptions {
  /** Login that is a member of `leasehold_broker`. */
  url: string;
  poolSize: number;
  ssl?: pg.ClientConfig['ssl'];
  onError: (error: Error) => void;
}

/** Every connection has its time-outs: a hung database is an error within seconds, never a hung caller. */
export function createPool(options: DatabaseOptions): pg.Pool {
  const pool = new pg.Pool({
    ...connectionOptions(options),
    max: options.poolSize,
    idleTimeoutMillis: 30_000,
    verify: (client, done) => void refuseStandby(client).then(() => done(), done),
  });
  pool.on('error', options.onError);
  // A connection that breaks between two statements of a transaction has nobody else who listens, and an unheard `error`
  // ends the process. The statement that follows fails with it anyway.
  pool.on('connect', (client) => client.on('error', () => undefined));
  return pool;
}

export function connectionOptions(options: Pick<DatabaseOptions, 'url' | 'ssl'>): pg.ClientConfig {
  return {
    connectionString: options.url,
    ...(options.ssl === undefined ? {} : { ssl: options.ssl }),
    application_name: 'leasehold',
    connectionTimeoutMillis: 5_000,
    query_timeout: 15_000,
    statement_timeout: 10_000,
    lock_timeout: 8_000,
    idle_in_transaction_session_timeout: 15_000,
    keepAlive: true,
    options: '-c search_path=leasehold -c timezone=UTC',
  };
}

/**
 * During a failover the address of the database may lead to a standby that is not promoted yet, or to the old primary that
 * came back as one. Reads there are stale and no write is ever possible: such a connection is not kept, so that the next
 * attempt finds the primary. What was the primary when it was connected to cannot become a standby without a restart.
 */
export async function refuseStandby(client: Pick<pg.ClientBase, 'query'>): Promise<void> {
  const { rows } = await client.query<{ standby: boolean }>('SELECT pg_is_in_recovery() AS standby');
  if (rows[0]!.standby) throw new Error('the database is a standby: database.url has to lead to the primary');
}

/** The caller learns that storage failed and what to do; the operator's log gets the cause. */
export function unavailable(cause: unknown): BrokerError {
  if (cause instanceof BrokerError) return cause;
  return new BrokerError(
    'STORAGE_UNAVAILABLE',
    "the broker's database did not confirm the change: nothing was handed out, retry with the same request_id",
    { cause, retryAfterMs: 500 },
  );
}

/** Runs one piece of work, turning whatever the database says into STORAGE_UNAVAILABLE. */
export async function guarded<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw unavailable(error);
  }
}

/** One transaction. */
export async function transaction<T>(pool: pg.Pool, work: (client: pg.PoolClient) => Promise<T>): Promise<T> {
  return await guarded(async () => {
    const client = await pool.connect();
    let broken: Error | undefined;
    try {
      await client.query('BEGIN');
      const result = await work(client);
      await client.query('COMMIT');
      return result;
    } catch (error) {
      // A connection on which even ROLLBACK fails is thrown away, and so is one whose prepared statements a migration has
      // outdated (feature_not_supported: "cached plan must not change result type").
      if ((error as { code?: string }).code === '0A000') broken = error as Error;
      await client.query('ROLLBACK').catch((rollback: Error) => (broken = rollback));
      throw error;
    } finally {
      client.release(broken);
    }
  });
}
