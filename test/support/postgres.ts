import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { inject } from 'vitest';

export interface TestDatabase {
  name: string;
  /** Superuser URL of this database. */
  url: string;
  host: string;
  port: number;
  superuser: string;
  superuserPassword: string;
  drop(): Promise<void>;
}

/** A fresh, empty database in the run's shared PostgreSQL. */
export async function createDatabase(label: string): Promise<TestDatabase> {
  const server = new URL(inject('postgresUrl'));
  const name = `t_${label}_${randomBytes(4).toString('hex')}`;
  await asSuperuser(server.href, (client) => client.query(`CREATE DATABASE ${pg.escapeIdentifier(name)}`));
  const url = new URL(server.href);
  url.pathname = `/${name}`;
  return {
    name,
    url: url.href,
    host: server.hostname,
    port: Number(server.port),
    superuser: decodeURIComponent(server.username),
    superuserPassword: decodeURIComponent(server.password),
    drop: async () => {
      await asSuperuser(server.href, (client) =>
        client.query(`DROP DATABASE IF EXISTS ${pg.escapeIdentifier(name)} WITH (FORCE)`),
      );
    },
  };
}

/** One connection, one piece of work, closed afterwards. */
export async function asSuperuser<T>(url: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: url });
  // A server that goes down on purpose must not end the test run; the query that needed it fails.
  client.on('error', () => undefined);
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}
