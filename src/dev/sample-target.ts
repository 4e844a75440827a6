import { randomBytes } from 'node:crypto';
import pg from 'pg';

/** A database as an estate might have it: some data, group roles, and the broker's own least-privilege login. */
export interface SampleTarget {
  host: string;
  port: number;
  database: string;
  /** CREATEROLE, and the right to take on `grantor`; nothing else. */
  user: string;
  password: string;
  /** ADMIN on the two groups. */
  grantor: string;
}

// Roles belong to the whole cluster: two that prepare it at once do so one after the other.
const lock = 7_236_502;
/** Group of each tier. */
export const sampleGroups = { read: 'warehouse_read', write: 'warehouse_write' } as const;
const { read, write } = sampleGroups;
const grantor = 'warehouse_grantor';

/** Makes the sample target, a database `name` with some orders, or resets the broker's password there. */
export async function prepareSampleTarget(superuserUrl: string, name: string): Promise<SampleTarget> {
  if (!/^[a-z][a-z0-9_]{0,40}$/.test(name)) throw new Error(`${name}: not a plain database name`);
  const admin = `${name}_leasehold`;
  const password = randomBytes(24).toString('base64url');
  await withRoleLock(superuserUrl, async (client) => {
    for (const role of [read, write, grantor, admin]) await createRole(client, role);
    await client.query(`ALTER ROLE ${admin} LOGIN CREATEROLE PASSWORD '${password}'`);
    // Over the logins that it makes it has ADMIN, by PostgreSQL itself (CREATEROLE, version 16 on). No
    // createrole_self_grant: a second membership for each login halves the rate of issuing, and revoking takes its own.
    await client.query(`ALTER ROLE ${admin} RESET createrole_self_grant`);
    await client.query(`GRANT ${read}, ${write} TO ${grantor} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE`);
    await client.query(`GRANT ${grantor} TO ${admin} WITH INHERIT FALSE, SET TRUE`);
    const { rowCount } = await client.query('SELECT FROM pg_database WHERE datname = $1', [name]);
    if (rowCount === 0) await client.query(`CREATE DATABASE ${name}`);
  });
  const url = new URL(superuserUrl);
  url.pathname = `/${name}`;
  await withClient(url.href, (client) =>
    client.query(`
      REVOKE ALL ON SCHEMA public FROM PUBLIC;
      GRANT USAGE ON SCHEMA public TO ${read}, ${write};
      CREATE TABLE IF NOT EXISTS orders (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text NOT NULL, total numeric(10, 2) NOT NULL);
      INSERT INTO orders (customer, total)
        SELECT v.* FROM (VALUES ('Amsel GmbH', 120.50), ('Brook Ltd', 89.00), ('Corvo SA', 1410.00)) AS v
        WHERE NOT EXISTS (SELECT FROM orders);
      GRANT SELECT ON orders TO ${read};
      GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO ${write}`),
  );
  return { host: url.hostname, port: Number(url.port || 5432), database: name, user: admin, password, grantor };
}

/** As the only one who changes roles of this cluster, until the work is done. */
export async function withRoleLock(superuserUrl: string, work: (client: pg.Client) => Promise<void>): Promise<void> {
  await withClient(superuserUrl, async (client) => {
    await client.query('SELECT pg_advisory_lock($1)', [lock]);
    await work(client);
  });
}

async function createRole(client: pg.Client, role: string): Promise<void> {
  const { rowCount } = await client.query('SELECT FROM pg_roles WHERE rolname = $1', [role]);
  if (rowCount === 0) await client.query(`CREATE ROLE ${role}`);
}

async function withClient(url: string, work: (client: pg.Client) => Promise<unknown>): Promise<void> {
  const client = new pg.Client({
    connectionString: url,
    connectionTimeoutMillis: 10_000,
    application_name: 'leasehold dev',
  });
  await client.connect();
  try {
    await work(client);
  } finally {
    await client.end();
  }
}
