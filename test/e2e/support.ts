import { cp, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { DescService } from '@bufbuild/protobuf';
import { timestampMs } from '@bufbuild/protobuf/wkt';
import type { Timestamp } from '@bufbuild/protobuf/wkt';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import type { Client } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import pg from 'pg';
import { expect } from 'vitest';
import { BadRequestSchema, ErrorInfoSchema } from '../../src/gen/google/rpc/error_details_pb.js';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { AuditService } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import type { AuditEvent } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import type { Lease } from '../../src/gen/leasehold/v1/common_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import type { Credential, PostgresLogin } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import type { OpenTaskResponse, Task } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { devWorkload } from '../../src/dev/environment.ts';
import { createEstate, startInProcess } from '../support/broker.ts';
import type { TestEstate } from '../support/broker.ts';

export const orchestratorId = devWorkload('orchestrator');
export const analystId = devWorkload('agent/analyst');

/** The parties of a task, each with its own attestation. */
export function parties(estate: TestEstate, port?: number) {
  return {
    tasks: estate.client(TaskService, 'orchestrator', port),
    agent: estate.client(CredentialService, 'agent/analyst', port),
    admin: estate.client(AdminService, 'operator', port),
    audit: estate.client(AuditService, 'auditor', port),
  };
}

export type Parties = ReturnType<typeof parties>;

/** An estate with the tests' own policy beside the quickstart's; no broker yet. */
export async function prepareEstate(label: string, overrides: Record<string, object> = {}): Promise<TestEstate> {
  const estate = await createEstate(label, { tasks: { renewalOverlap: '1s' }, ...overrides });
  await cp(path.join(import.meta.dirname, 'fixtures', 'e2e.yaml'), path.join(estate.policyDir, 'e2e.yaml'));
  return estate;
}

export interface Served extends Parties {
  estate: TestEstate;
  stop(): Promise<void>;
}

/** A whole broker for one test file. */
export async function serve(label: string, overrides: Record<string, object> = {}): Promise<Served> {
  const estate = await prepareEstate(label, overrides);
  const broker = await startInProcess(estate);
  return {
    estate,
    ...parties(estate),
    stop: async () => {
      await broker.stop(500);
      await estate.remove();
    },
  };
}

/** A Connect client with whatever token; none at all when it is undefined. */
export function clientWith<S extends DescService>(service: S, httpPort: number, token?: string): Client<S> {
  return createClient(
    service,
    createConnectTransport({
      baseUrl: `http://127.0.0.1:${httpPort}`,
      httpVersion: '1.1',
      interceptors: [
        (next) => async (request) => {
          if (token !== undefined) request.header.set('authorization', `Bearer ${token}`);
          return await next(request);
        },
      ],
    }),
  );
}

export interface Refusal {
  code: keyof typeof Code;
  reason: string | undefined;
  message: string;
  fields: string[];
  metadata: Record<string, string>;
}

/** What a caller is told; fails when the call succeeds. */
export async function refusal(call: Promise<unknown>): Promise<Refusal> {
  const thrown = await call.then(
    (answer) => {
      throw new Error(`was not refused but answered with ${JSON.stringify(answer, printable)}`);
    },
    (error: unknown) => error,
  );
  if (!(thrown instanceof ConnectError)) throw thrown;
  return refusalOf(thrown);
}

export function refusalOf(error: ConnectError): Refusal {
  const info = error.findDetails(ErrorInfoSchema)[0];
  const bad = error.findDetails(BadRequestSchema)[0];
  return {
    code: Code[error.code] as keyof typeof Code,
    reason: info?.reason,
    message: error.rawMessage,
    fields: bad?.fieldViolations.map(({ field }) => field) ?? [],
    metadata: info?.metadata ?? {},
  };
}

function printable(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? String(value) : value;
}

export const reportsRead = { tool: 'reports', tier: Tier.READ };
export const warehouseRead = { tool: 'warehouse', tier: Tier.READ };
export const warehouseWrite = { tool: 'warehouse', tier: Tier.WRITE };
export const tickerRead = { tool: 'ticker', tier: Tier.READ };
export const kioskRead = { tool: 'kiosk', tier: Tier.READ };
export const ledgerRead = { tool: 'ledger', tier: Tier.READ };
export const ledgerExecute = { tool: 'ledger', tier: Tier.EXECUTE };
export const ticket = { change_ticket: 'CHG-1' };

type OpenInit = Parameters<Client<typeof TaskService>['openTask']>[0];

/** A task of the analyst, for these tools. */
export async function openTask(
  { tasks }: Pick<Parties, 'tasks'>,
  tools: OpenInit['tools'],
  change: OpenInit = {},
): Promise<OpenTaskResponse & { task: Task; taskId: string }> {
  const opened = await tasks.openTask({
    intent: 'an end-to-end test',
    agent: 'analyst',
    tools: tools ?? [],
    ...change,
  });
  return { ...opened, task: opened.task!, taskId: opened.task!.taskId };
}

export interface Held {
  credential: Credential;
  lease: Lease;
}

export function held(answer: { credential?: Credential | undefined }): Held {
  const { credential } = answer;
  if (credential?.lease === undefined) throw new Error('the answer holds no credential');
  return { credential, lease: credential.lease };
}

export function tokenOf({ credential }: Held): string {
  if (credential.material.case !== 'accessToken') throw new Error(`holds ${credential.material.case}`);
  return credential.material.value.token;
}

export function loginOf({ credential }: Held): PostgresLogin {
  if (credential.material.case !== 'postgresLogin') throw new Error(`holds ${credential.material.case}`);
  return credential.material.value;
}

/** Logs in as the agent would, does one piece of work, logs out. */
export async function loggedIn<T>(login: PostgresLogin, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = await logIn(login);
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

export async function logIn({ host, port, database, username, password }: PostgresLogin): Promise<pg.Client> {
  const client = new pg.Client({ host, port, database, user: username, password, connectionTimeoutMillis: 10_000 });
  // A session that its target ends is what some tests wait for; nobody else listens.
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

/** `undefined` when the target lets it in, else its SQLSTATE. */
export async function loginRefusal(login: PostgresLogin): Promise<string | undefined> {
  return await loggedIn(login, () => Promise.resolve(undefined)).catch(
    (error: unknown) => (error as pg.DatabaseError).code,
  );
}

/** What the target itself says about a login role. */
export async function roleExists(estate: TestEstate, role: string): Promise<boolean> {
  return (await sql(estate.targetUrl, 'SELECT FROM pg_roles WHERE rolname = $1', [role])).length > 0;
}

/** Asks a database as its superuser. */
export async function sql(url: string, text: string, values: unknown[] = []): Promise<Record<string, unknown>[]> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    return (await client.query(text, values)).rows as Record<string, unknown>[];
  } finally {
    await client.end();
  }
}

export function ms(time: Timestamp | undefined): number {
  if (time === undefined) throw new Error('the time is not set');
  return timestampMs(time);
}

/** All audit events of a task, through its pages. */
export async function auditOf({ audit }: Pick<Parties, 'audit'>, taskId: string): Promise<AuditEvent[]> {
  const events: AuditEvent[] = [];
  let pageToken = '';
  do {
    const page = await audit.listAuditEvents({ taskId, pageSize: 7, pageToken });
    events.push(...page.events);
    pageToken = page.nextPageToken;
  } while (pageToken !== '');
  return events;
}

/** Rewrites one policy file and waits until the broker decides by it. */
export async function editPolicy(
  { estate, admin }: Pick<Served, 'estate' | 'admin'>,
  file: string,
  edit: (text: string) => string,
): Promise<void> {
  const before = (await admin.getStatus({})).policyRevision;
  const target = path.join(estate.policyDir, file);
  const text = await readFile(target, 'utf8');
  const edited = edit(text);
  expect(edited).not.toBe(text);
  await writeFile(target, edited);
  await expect.poll(async () => (await admin.getStatus({})).policyRevision, { timeout: 10_000 }).not.toBe(before);
}

/** Gathers a stream in the background. */
export function gather<T>(stream: AsyncIterable<T>): { items: T[]; ended: Promise<ConnectError | undefined> } {
  const items: T[] = [];
  const ended = (async () => {
    try {
      for await (const item of stream) items.push(item);
      return undefined;
    } catch (error) {
      return ConnectError.from(error);
    }
  })();
  return { items, ended };
}
