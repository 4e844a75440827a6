import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { Code, ConnectError } from '@connectrpc/connect';
import pg from 'pg';
import { expect, vi } from 'vitest';
import { parse, stringify } from 'yaml';
import { freePort } from '../../src/dev/postgres.ts';
import { ErrorInfoSchema } from '../../src/gen/google/rpc/error_details_pb.js';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import {
  CredentialService,
  type Credential,
  type PostgresLogin,
} from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { migrate } from '../../src/storage/migrate.ts';
import type { TestEstate } from '../support/broker.ts';
import { asSuperuser } from '../support/postgres.ts';

/** `leasehold.yaml` as written, two levels deep. */
export type RawFile = Record<string, Record<string, object>>;
export type Row = Record<string, unknown>;

export const reportsRead = { tool: 'reports', tier: Tier.READ };
export const warehouseRead = { tool: 'warehouse', tier: Tier.READ };

const made = new WeakMap<TestEstate, Map<number, ReturnType<typeof makeCallers>>>();

/** Kept, so that a caller keeps its attestation as a real one does. */
export function callers(estate: TestEstate, port = estate.httpPort) {
  const known = made.get(estate) ?? new Map<number, ReturnType<typeof makeCallers>>();
  made.set(estate, known);
  const found = known.get(port) ?? makeCallers(estate, port);
  known.set(port, found);
  return found;
}

function makeCallers(estate: TestEstate, port: number) {
  return {
    orchestrator: estate.client(TaskService, 'orchestrator', port),
    agent: estate.client(CredentialService, 'agent/analyst', port),
  };
}

export async function openTask(estate: TestEstate, port?: number): Promise<string> {
  const { task } = await callers(estate, port).orchestrator.openTask({
    requestId: crypto.randomUUID(),
    intent: 'fault test',
    agent: 'analyst',
    tools: [reportsRead, warehouseRead],
  });
  return task!.taskId;
}

/** What the broker's own tables hold, read by a superuser: never the broker's word alone. */
export async function brokerRows(
  estate: Pick<TestEstate, 'databaseUrl'>,
  sql: string,
  values: unknown[] = [],
): Promise<Row[]> {
  return await asSuperuser(estate.databaseUrl, async (client) => {
    await client.query('SET search_path = leasehold');
    return (await client.query<Row>(sql, values)).rows;
  });
}

export async function leasesOf(estate: TestEstate, taskId: string): Promise<Row[]> {
  return await brokerRows(estate, 'SELECT * FROM leases WHERE task_id = $1 ORDER BY lease_id', [taskId]);
}

/** Which of these leases the target still has a role for. */
export async function rolesOf(estate: TestEstate, leases: readonly Row[]): Promise<string[]> {
  const names = leases.map((lease) => String(lease['handle']).split('/')[1]).filter((name) => name !== undefined);
  return await asSuperuser(estate.targetUrl, async (client) => {
    const { rows } = await client.query<{ name: string }>(
      'SELECT rolname::text AS name FROM pg_roles WHERE rolname = ANY($1)',
      [names],
    );
    return rows.map(({ name }) => name);
  });
}

export function loginOf(credential: Credential | undefined): PostgresLogin {
  if (credential?.material.case !== 'postgresLogin') throw new Error('not a database login');
  return credential.material.value;
}

export function tokenOf(credential: Credential | undefined): string {
  if (credential?.material.case !== 'accessToken') throw new Error('not an access token');
  return credential.material.value.token;
}

export function claimsOf(token: string): Row {
  return JSON.parse(Buffer.from(token.split('.')[1]!, 'base64url').toString()) as Row;
}

/** A session of the credential's own, opened as the agent would. The caller ends it. */
export async function logIn(login: PostgresLogin): Promise<pg.Client> {
  const client = new pg.Client({
    host: login.host,
    port: login.port,
    database: login.database,
    user: login.username,
    password: login.password,
    connectionTimeoutMillis: 10_000,
  });
  client.on('error', () => undefined);
  try {
    await client.connect();
  } catch (error) {
    await client.end().catch(() => undefined);
    throw error;
  }
  return client;
}

/** Orders that the login can read: a login that works. Throws when it does not. */
export async function ordersSeenBy(login: PostgresLogin): Promise<number> {
  const client = await logIn(login);
  try {
    const { rows } = await client.query<{ count: number }>('SELECT count(*)::int AS count FROM orders');
    return rows[0]!.count;
  } finally {
    await client.end();
  }
}

export interface Refusal {
  code: string;
  reason: string;
  message: string;
}

/** How a call was refused; fails the test when it was answered. */
export async function refusalOf(call: Promise<unknown>): Promise<Refusal> {
  return await call.then(
    () => {
      throw new Error('the call was answered, a refusal was expected');
    },
    (thrown: unknown) => {
      const error = ConnectError.from(thrown);
      const [info] = error.findDetails(ErrorInfoSchema);
      return { code: Code[error.code], reason: info?.reason ?? '', message: error.rawMessage };
    },
  );
}

/** Answers as soon as the call is not refused for one of these reasons any more: what a client with retries does. */
export async function retrying<T>(
  call: () => Promise<T>,
  reasons: readonly string[] = ['IN_PROGRESS', 'STORAGE_UNAVAILABLE', 'PROVIDER_UNAVAILABLE', ''],
  timeout = 20_000,
): Promise<T> {
  const until = Date.now() + timeout;
  for (;;) {
    try {
      return await call();
    } catch (thrown) {
      const [info] = ConnectError.from(thrown).findDetails(ErrorInfoSchema);
      if (!reasons.includes(info?.reason ?? '') || Date.now() > until) throw thrown;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

/** Every lease has an outcome, the target has none of the roles, and the task has ended. */
export async function expectSettled(estate: TestEstate, taskId: string, timeout = 20_000): Promise<Row[]> {
  await eventually(async () => {
    const rows = await brokerRows(
      estate,
      'SELECT state, settled_at IS NOT NULL AS settled FROM tasks WHERE task_id = $1',
      [taskId],
    );
    expect(rows).toEqual([{ state: 'closed', settled: true }]);
  }, timeout);
  const leases = await leasesOf(estate, taskId);
  expect(leases.filter((lease) => lease['state'] !== 'settled' || lease['outcome'] === null)).toEqual([]);
  expect(await rolesOf(estate, leases)).toEqual([]);
  return leases;
}

/** Looks again and again until the look passes; unlike `expect.poll` also outside of one test's own context. */
export async function eventually(look: () => Promise<void>, timeout = 20_000): Promise<void> {
  await vi.waitFor(look, { timeout, interval: 50 });
}

/** Database `broker` and the broker's own login `app`, on a server of its own whose superuser has the same password. */
export async function prepareBrokerDatabase(
  urlFor: (user: string, database: string) => string,
  password: string,
): Promise<void> {
  await asSuperuser(urlFor('postgres', 'postgres'), (client) => client.query('CREATE DATABASE broker'));
  await migrate(urlFor('postgres', 'broker'));
  await asSuperuser(urlFor('postgres', 'broker'), (client) =>
    client.query(`CREATE ROLE app LOGIN PASSWORD '${password}' IN ROLE leasehold_broker`),
  );
}

/** Changes the configuration that the next broker reads. */
export async function editConfig(estate: TestEstate, edit: (config: RawFile) => void): Promise<void> {
  const config = parse(await readFile(estate.configFile, 'utf8')) as RawFile;
  edit(config);
  await writeFile(estate.configFile, stringify(config), { mode: 0o600 });
}

/** A second replica: the same configuration on ports of its own. */
export async function secondReplica(
  estate: TestEstate,
): Promise<{ configFile: string; httpPort: number; grpcPort: number }> {
  const [grpcPort, httpPort] = [await freePort(), await freePort()];
  const config = parse(await readFile(estate.configFile, 'utf8')) as RawFile;
  config['server'] = {
    ...config['server'],
    grpc: { listen: `127.0.0.1:${grpcPort}` },
    http: { listen: `127.0.0.1:${httpPort}` },
  };
  const configFile = path.join(estate.dir, `leasehold-${httpPort}.yaml`);
  await writeFile(configFile, stringify(config), { mode: 0o600 });
  return { configFile, httpPort, grpcPort };
}

/** Replaces text in a file of the policy directory, as an editor would save it. */
export async function editPolicy(estate: TestEstate, file: string, edit: (text: string) => string): Promise<void> {
  const target = path.join(estate.policyDir, file);
  const before = await readFile(target, 'utf8');
  const after = edit(before);
  if (after === before) throw new Error(`the edit of ${file} changes nothing`);
  await writeFile(target, after);
}

/** The same numbers in every run (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
