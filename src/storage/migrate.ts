import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import pg from 'pg';

const directory = path.join(import.meta.dirname, '..', '..', 'migrations');
// Any constant of our own: two brokers that start at once migrate one after the other.
const lock = 7_236_501;

export interface Migration {
  version: number;
  name: string;
  sql: string;
  sha256: string;
}

export class DatabaseNewerError extends Error {
  readonly code = 'DATABASE_NEWER';
}

export class DatabaseBehindError extends Error {
  readonly code = 'DATABASE_BEHIND';
}

export interface MigrateResult {
  applied: string[];
  version: number;
}

/**
 * Applies what is missing, each file in a transaction of its own. Forward only. `url` names a login that may create
 * schemas and roles; the broker itself runs with less (`leasehold_broker`).
 */
export async function migrate(url: string, ssl?: pg.ClientConfig['ssl']): Promise<MigrateResult> {
  const client = new pg.Client({
    connectionString: url,
    connectionTimeoutMillis: 10_000,
    application_name: 'leasehold migrate',
    ...(ssl === undefined ? {} : { ssl }),
  });
  client.on('error', () => undefined);
  await client.connect();
  try {
    await client.query('SELECT pg_advisory_lock($1)', [lock]);
    await client.query('CREATE SCHEMA IF NOT EXISTS leasehold');
    await client.query('SET search_path = leasehold');
    await client.query(`CREATE TABLE IF NOT EXISTS schema_migrations (
      version integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())`);
    const ours = await loadMigrations();
    const pending = compare(ours, await recorded(client));
    for (const migration of pending) {
      await client.query('BEGIN');
      try {
        await client.query(migration.sql);
        await client.query('INSERT INTO schema_migrations (version, name, sha256) VALUES ($1, $2, $3)', [
          migration.version,
          migration.name,
          migration.sha256,
        ]);
        await client.query('COMMIT');
      } catch (error) {
        await client.query('ROLLBACK');
        throw new Error(`migration ${migration.name} failed and was rolled back: ${(error as Error).message}`, {
          cause: error,
        });
      }
    }
    return { applied: pending.map((migration) => migration.name), version: ours.at(-1)?.version ?? 0 };
  } finally {
    await client.end();
  }
}

/** What a broker asks at start: throws when the database is newer than this release, or has migrations missing. */
export async function checkSchema(pool: pg.Pool): Promise<number> {
  const ours = await loadMigrations();
  let rows: Recorded[];
  try {
    rows = await recorded(pool);
  } catch (error) {
    if ((error as { code?: string }).code !== '42P01') throw error;
    rows = [];
  }
  const pending = compare(ours, rows);
  if (pending.length > 0) {
    throw new DatabaseBehindError(
      `the database lacks ${pending.map((migration) => migration.name).join(', ')}: run \`leasehold migrate\` first`,
    );
  }
  return ours.at(-1)?.version ?? 0;
}

interface Recorded {
  version: number;
  name: string;
  sha256: string;
}

async function recorded(client: Pick<pg.Client, 'query'>): Promise<Recorded[]> {
  const result = await client.query<Recorded>(
    'SELECT version, name, sha256 FROM leasehold.schema_migrations ORDER BY version',
  );
  return result.rows;
}

function compare(ours: readonly Migration[], applied: readonly Recorded[]): Migration[] {
  const known = new Map(ours.map((migration) => [migration.version, migration]));
  for (const row of applied) {
    const migration = known.get(row.version);
    if (migration === undefined) {
      throw new DatabaseNewerError(
        `the database is at migration ${applied.at(-1)!.name}, which this release does not know: run a newer release of leasehold`,
      );
    }
    if (migration.sha256 !== row.sha256) {
      throw new Error(
        `migration ${row.name} was changed after it had been applied: restore the file as it was released`,
      );
    }
  }
  const done = new Set(applied.map((row) => row.version));
  return ours.filter((migration) => !done.has(migration.version));
}

async function loadMigrations(): Promise<Migration[]> {
  const names = (await readdir(directory)).filter((name) => name.endsWith('.sql')).sort();
  return await Promise.all(
    names.map(async (name, index) => {
      const version = Number(/^(\d{4})_[a-z0-9_]+\.sql$/.exec(name)?.[1]);
      if (version !== index + 1) throw new Error(`migrations/${name}: expected number ${index + 1}`);
      const sql = await readFile(path.join(directory, name), 'utf8');
      return { version, name, sql, sha256: createHash('sha256').update(sql).digest('hex') };
    }),
  );
}
