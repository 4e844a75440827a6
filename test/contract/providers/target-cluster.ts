import { randomBytes } from 'node:crypto';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import pg from 'pg';
import { startEmbeddedPostgres } from '../../../src/dev/postgres.ts';
import type { PostgresTarget } from '../../../src/providers/postgres/target.ts';
import { asSuperuser } from '../../support/postgres.ts';

export interface TargetCluster {
  /** Superuser URLs: ground truth is asked with them, the provider never has them. */
  url: string;
  otherUrl: string;
  /** For the provider: exactly the least-privileged login that the provider's README describes. */
  target: PostgresTarget;
  /** Everything that the server has logged. */
  log(): string;
  stop(): Promise<void>;
}

/** A target of its own: its log is read (every statement is in it), and it allows prepared transactions. */
export async function startTargetCluster(): Promise<TargetCluster> {
  const dir = await mkdtemp(path.join(tmpdir(), 'leasehold-target-'));
  await chmod(dir, 0o755);
  const password = randomBytes(12).toString('hex');
  const adminPassword = `admin-${randomBytes(12).toString('hex')}`;
  const lines: string[] = [];
  const server = await startEmbeddedPostgres({
    dataDir: path.join(dir, 'pg'),
    password,
    settings: [
      'fsync=off',
      'max_connections=200',
      'max_prepared_transactions=5',
      'log_statement=all',
      'log_connections=on',
    ],
    onLog: (line) => lines.push(line),
  });
  const base = `postgres://${server.user}:${password}@${server.host}:${server.port}`;
  await asSuperuser(`${base}/postgres`, async (c) => {
    await c.query('CREATE DATABASE orders');
    await c.query('CREATE DATABASE other');
  });
  await asSuperuser(`${base}/orders`, (c) => c.query(readmeSql(adminPassword)));
  await asSuperuser(`${base}/orders`, (c) => c.query(schemaSql));
  return {
    url: `${base}/orders`,
    otherUrl: `${base}/other`,
    target: {
      host: server.host,
      port: server.port,
      database: 'orders',
      user: 'leasehold_admin',
      grantor: 'leasehold_grantor',
      password: adminPassword,
      sslmode: 'disable',
      poolSize: 4,
    },
    log: () => lines.join('\n'),
    stop: async () => {
      await server.stop();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

/** Kept word for word in src/providers/postgres/README.md; a test compares. */
export function readmeSql(password: string): string {
  return `CREATE ROLE leasehold_admin LOGIN CREATEROLE PASSWORD ${pg.escapeLiteral(password)};

CREATE ROLE orders_read NOLOGIN;
CREATE ROLE orders_write NOLOGIN;

CREATE ROLE leasehold_grantor NOLOGIN;
GRANT leasehold_grantor TO leasehold_admin WITH INHERIT FALSE, SET TRUE;
GRANT orders_read, orders_write TO leasehold_grantor WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;
`;
}

const schemaSql = `
  CREATE TABLE orders (id int PRIMARY KEY, item text);
  INSERT INTO orders VALUES (1, 'lamp');
  GRANT SELECT ON orders TO orders_read;
  GRANT SELECT, INSERT, UPDATE ON orders TO orders_write;
  GRANT CREATE ON SCHEMA public TO orders_write;
`;

/** One connection as the holder of a credential would make it. */
export async function login(material: {
  host: string;
  port: number;
  database: string;
  username: string;
  password: string;
}): Promise<pg.Client> {
  const { host, port, database, username, password } = material;
  const client = new pg.Client({ host, port, database, user: username, password, connectionTimeoutMillis: 5_000 });
  client.on('error', () => undefined);
  await client.connect();
  return client;
}
