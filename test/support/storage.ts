import { randomBytes } from 'node:crypto';
import type pg from 'pg';
import { afterAll } from 'vitest';
import { idFactory } from '../../src/domain/ids.ts';
import type { Lease, Task } from '../../src/domain/model.ts';
import type { LeaseWrite } from '../../src/domain/store.ts';
import { auditEvent } from '../../src/domain/audit.ts';
import { migrate } from '../../src/storage/migrate.ts';
import { openStorage, type Storage } from '../../src/storage/storage.ts';
import { asSuperuser, createDatabase, type TestDatabase } from './postgres.ts';

export interface BrokerDatabase extends TestDatabase {
  /** The broker's own login: a member of leasehold_broker, owner of nothing. */
  brokerUrl: string;
}

export async function createBrokerDatabase(label: string): Promise<BrokerDatabase> {
  const database = await createDatabase(label);
  await migrate(database.url);
  const user = `broker_${randomBytes(6).toString('hex')}`;
  const password = randomBytes(12).toString('hex');
  await asSuperuser(database.url, (client) =>
    client.query(`CREATE ROLE ${user} LOGIN PASSWORD '${password}' IN ROLE leasehold_broker`),
  );
  const brokerUrl = new URL(database.url);
  brokerUrl.username = user;
  brokerUrl.password = password;
  return {
    ...database,
    brokerUrl: brokerUrl.href,
    drop: async () => {
      await database.drop();
      await asSuperuser(withDatabase(database.url, 'postgres'), (client) =>
        client.query(`DROP ROLE IF EXISTS ${user}`),
      );
    },
  };
}

function withDatabase(url: string, name: string): string {
  const other = new URL(url);
  other.pathname = `/${name}`;
  return other.href;
}

export async function openTestStorage(database: BrokerDatabase): Promise<Storage> {
  return await openStorage({ url: database.brokerUrl, poolSize: 8, onError: () => undefined });
}

/** A database and its storage for one test file, gone when the file has run. */
export async function storageFor(label: string): Promise<{ database: BrokerDatabase; storage: Storage }> {
  const database = await createBrokerDatabase(label);
  const storage = await openTestStorage(database);
  afterAll(async () => {
    await storage.close();
    await database.drop();
  });
  return { database, storage };
}

export const newId = idFactory(Date.now, randomBytes);

export function taskOf(overrides: Partial<Task> = {}) {
  const taskId = newId('tsk');
  const now = Date.now();
  return {
    tenant: 'default',
    taskId,
    rootTaskId: taskId,
    parentTaskId: undefined,
    requestId: crypto.randomUUID(),
    requestDigest: 'digest',
    intent: 'test',
    agent: 'analyst',
    opener: 'spiffe://dev.leasehold.test/orchestrator',
    agentWorkload: 'spiffe://dev.leasehold.test/agent/analyst',
    tools: [{ tool: 'reports', tier: 'read' as const }],
    context: {},
    labels: {},
    openedAt: now,
    deadline: now + 3_600_000,
    heartbeatInterval: undefined,
    lockEpoch: 1,
    ...overrides,
  };
}

/** The task that a store was given: no lock stood in its way. */
export function insertedTask(result: Awaited<ReturnType<Storage['tasks']['insert']>>): Task {
  if ('refused' in result) throw new Error(`the task was not written: ${result.refused}`);
  return result.task;
}

export function leaseOf(task: Pick<Task, 'tenant' | 'taskId'>, overrides: Partial<Lease> = {}): Lease {
  const now = Date.now();
  return {
    tenant: task.tenant,
    leaseId: newId('lse'),
    taskId: task.taskId,
    requestId: crypto.randomUUID(),
    agent: 'analyst',
    workload: 'spiffe://dev.leasehold.test/agent/analyst',
    tool: 'reports',
    tier: 'read',
    provider: 'jwt',
    handle: '',
    state: 'active',
    outcome: undefined,
    revocationKind: 'immediate',
    issuedAt: now,
    expiresAt: now + 600_000,
    settledAt: undefined,
    deadBy: undefined,
    renewedFrom: undefined,
    renewalCount: 0,
    lineStartedAt: now,
    policyRevision: 'sha256:test',
    policyRule: 'test/rule',
    settleCause: undefined,
    settleAttempts: 0,
    settleError: undefined,
    ...overrides,
  };
}

export function writeOf(task: Task, lease: Lease, overrides: Partial<LeaseWrite> = {}): LeaseWrite {
  return {
    lease,
    epoch: task.epoch,
    lockEpoch: 1,
    settleAt: lease.expiresAt,
    supersedeAt: undefined,
    events: [auditEvent(task, 'lease.issued', lease.workload, Date.now(), { tool: lease.tool }, lease.leaseId)],
    ...overrides,
  };
}

export async function rows(url: string, text: string, values: unknown[] = []): Promise<Record<string, unknown>[]> {
  return await asSuperuser(url, async (client: pg.Client) => {
    await client.query('SET search_path = leasehold');
    return (await client.query(text, values)).rows as Record<string, unknown>[];
  });
}
