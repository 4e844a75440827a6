import pg from 'pg';
import type { Millis } from '../../domain/time.ts';
import { untilAborted } from '../../domain/within.ts';
import { sqlstateOf, TargetError } from './errors.ts';

export type SslMode = 'disable' | 'require' | 'verify-ca' | 'verify-full';

/** A database in which logins are made. */
export interface PostgresTarget {
  /** Where the agent finds it. */
  host: string;
  port: number;
  database: string;
  /** The broker's own login there: CREATEROLE, ADMIN on the group roles. See this folder's README. */
  user: string;
  password: string;
  sslmode: SslMode;
  /** PEM certificates that the server's certificate must chain to; the system's own when unset. */
  ca?: string;
  /** Connections for issuing. A few more are kept apart for revoking, so that a rush of issues cannot hold it up. */
  poolSize?: number;
  /** Longest time that one issue may take. */
  issueTimeout?: Millis;
  /** Longest time that one revoke may take. */
  revokeTimeout?: Millis;
  /** Where the broker finds it, when that differs from `host` and `port`. */
  connectHost?: string;
  connectPort?: number;
  /**
   * Role that may hand out the group roles; the broker's login takes it on for that one statement. When unset the login
   * hands them out itself, which costs PostgreSQL a look at every role that the login has made.
   */
  grantor?: string;
  /** Role that gets what a login owns when it is revoked; the login's group role when unset. */
  reassignTo?: string;
}

export const defaults = { poolSize: 10, issueTimeout: 5_000, revokeTimeout: 15_000 } as const;
const maxWaiting = 1_000;
/** The target closed the connection: a restart, a failover, or somebody terminated the session. */
const adminShutdown = '57P01';
/** How long one statement may wait for a lock that another session holds. */
const lockTimeout = 3_000;

export interface Connection {
  query: pg.PoolClient['query'];
  /** What the target's clock shows at `at` of our monotonic clock (`performance.now()`). */
  targetTime(at: Millis): Date;
}

export interface TargetPool {
  /**
   * One connection for one piece of work; dropped, not reused, when it is aborted or may be in an unknown state. The work
   * is done anew when the target had closed the connection, so it has to be safe to repeat.
   */
  use<T>(signal: AbortSignal, work: (connection: Connection) => Promise<T>): Promise<T>;
  close(): Promise<void>;
}

/** A configured target with its connections: revoking has some of its own. */
export interface Target {
  config: PostgresTarget;
  issuing: TargetPool;
  revoking: TargetPool;
}

/** Major version from which membership has INHERIT and SET options, and CREATEROLE is no near-superuser. */
export const minServerVersion = 160_000;

export function openPool(target: PostgresTarget, size: number, statementTimeout: Millis): TargetPool {
  const pool = new pg.Pool({
    host: target.connectHost ?? target.host,
    port: target.connectPort ?? target.port,
    database: target.database,
    user: target.user,
    password: target.password,
    ssl: sslOptions(target),
    max: size,
    connectionTimeoutMillis: statementTimeout,
    idleTimeoutMillis: 30_000,
    // Bounds the drift of the clock difference that is taken when a connection opens.
    maxLifetimeSeconds: 600,
    statement_timeout: statementTimeout,
    lock_timeout: Math.min(lockTimeout, statementTimeout),
    idle_in_transaction_session_timeout: statementTimeout,
    application_name: 'leasehold',
    keepAlive: true,
    allowExitOnIdle: true,
  });
  // An idle connection that the target closes must not end the process; the next use opens another.
  pool.on('error', () => undefined);
  const offsets = new WeakMap<pg.PoolClient, Millis>();

  async function once<T>(signal: AbortSignal, work: (connection: Connection) => Promise<T>): Promise<T> {
    signal.throwIfAborted();
    if (pool.waitingCount >= maxWaiting) throw new TargetError('too many calls wait for this target');
    const connecting = pool.connect();
    const client = await untilAborted(connecting, signal, () => {
      connecting.then(
        (late) => late.release(),
        () => undefined,
      );
      return outOfTime();
    });
    // Without a listener the loss of a connection that is in use would be an uncaught error.
    const ignore = () => undefined;
    client.on('error', ignore);
    let failure: Error | undefined;
    try {
      const running = (async () => {
        let offset = offsets.get(client);
        if (offset === undefined) {
          const { rows } = await client.query<{ now: number }>(
            'SELECT extract(epoch FROM clock_timestamp())::float8 * 1000 AS now',
          );
          offset = rows[0]!.now - performance.now();
          offsets.set(client, offset);
        }
        const difference = offset;
        return await work({ query: client.query.bind(client), targetTime: (at) => new Date(at + difference) });
      })();
      return await untilAborted(running, signal, () => {
        running.catch(() => undefined);
        return outOfTime();
      });
    } catch (error) {
      failure = error instanceof Error ? error : new Error(String(error));
      throw error;
    } finally {
      // A connection that is dropped may still fail while it closes, so it keeps its listener.
      const keep = reusable(client, failure);
      if (keep) client.removeListener('error', ignore);
      client.release(keep ? undefined : failure);
    }
  }

  return {
    async use(signal, work) {
      // A pool can hold as many connections that the target has closed as it has connections; each is found out once.
      for (let left = size; ; left -= 1) {
        try {
          return await once(signal, work);
        } catch (error) {
          if (left === 0 || sqlstateOf(error) !== adminShutdown || signal.aborted) throw error;
        }
      }
    },
    close: () => pool.end(),
  };
}

/** A refusal outside a transaction (class 42: no such role, no privilege) leaves the connection as good as it was. */
function reusable(client: pg.PoolClient, failure: Error | undefined): boolean {
  if (failure === undefined) return true;
  return sqlstateOf(failure)?.startsWith('42') === true && client.getTransactionStatus() === 'I';
}

const outOfTime = (): TargetError => new TargetError('the call ran out of time');

/** libpq's modes. `prefer` and `allow` are not among them: they fall back to plaintext without a word. */
function sslOptions(target: PostgresTarget): pg.PoolConfig['ssl'] {
  const ca = target.ca === undefined ? {} : { ca: target.ca };
  switch (target.sslmode) {
    case 'disable':
      return false;
    case 'require':
      return { rejectUnauthorized: false };
    case 'verify-ca':
      return { ...ca, rejectUnauthorized: true, checkServerIdentity: () => undefined };
    case 'verify-full':
      return { ...ca, rejectUnauthorized: true };
  }
}
