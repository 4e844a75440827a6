import { afterAll, beforeAll, expect, test } from 'vitest';
import { noArguments } from '../../src/domain/arguments.ts';
import { auditEvent } from '../../src/domain/audit.ts';
import type { NewApproval } from '../../src/domain/approvals/store.ts';
import type { Lease, Task } from '../../src/domain/model.ts';
import type { Storage } from '../../src/storage/storage.ts';
import {
  createBrokerDatabase,
  insertedTask,
  leaseOf,
  newId,
  openTestStorage,
  rows,
  taskOf,
  writeOf,
  type BrokerDatabase,
} from '../support/storage.ts';

let database: BrokerDatabase;
let first: Storage;
let second: Storage;
beforeAll(async () => {
  database = await createBrokerDatabase('approvals');
  // Two replicas.
  [first, second] = [await openTestStorage(database), await openTestStorage(database)];
});
afterAll(async () => {
  await Promise.all([first.close(), second.close()]);
  await database.drop();
});

const outbox = { endpoints: () => [], newId };
const limits = { maxPending: 100, since: 0, maxSince: 10_000, epoch: 1 };

async function openedTask(change: Partial<Task> = {}): Promise<Task> {
  return insertedTask(await first.tasks.insert(taskOf(change), []));
}

/** An approval of this task as people have given it. */
async function approved(task: Task, change: Partial<NewApproval> & { until?: number } = {}): Promise<string> {
  const store = first.approvals(outbox);
  const now = Date.now();
  const { until = now + 60_000, ...more } = change;
  const wanted: NewApproval = {
    tenant: task.tenant,
    approvalId: newId('apr'),
    kind: 'request',
    taskId: task.taskId,
    intent: task.intent,
    opener: task.opener,
    agent: task.agent,
    parentAgent: undefined,
    workload: task.agentWorkload,
    excluded: [],
    tool: 'reports',
    tier: 'read',
    arguments: noArguments,
    policyRevision: 'sha256:test',
    policyRule: 'test/rule',
    reason: 'a test',
    justification: '',
    quorums: [{ rule: 'test/rule', approvers: ['x'], count: 1 }],
    uses: 1,
    validFor: 60_000,
    coolDown: 0,
    requestedBy: task.opener,
    requestedAt: now,
    decideBy: now + 60_000,
    votes: [],
    ...more,
  };
  await store.request([wanted], limits, () => ({ events: [], notices: [] }));
  await store.change(task.tenant, wanted.approvalId, () => ({
    set: { state: 'approved', decidedAt: now, expiresAt: until },
    events: [],
    notices: [],
  }));
  return wanted.approvalId;
}

async function written(
  task: Task,
  approvalId: string,
  change: Partial<Lease> = {},
  argumentsDigest = noArguments.digest,
  storage = first,
): Promise<boolean> {
  const lease = leaseOf(task, change);
  return await storage.writer.insert({ ...writeOf(task, lease), approval: { approvalId, argumentsDigest } });
}

async function leftOf(approvalId: string): Promise<unknown> {
  const [row] = await rows(database.url, 'SELECT uses_left, state FROM approvals WHERE approval_id = $1', [approvalId]);
  return row;
}

test('a write takes a use only for exactly what was approved, by the database’s own judgement', async () => {
  const task = await openedTask();
  const approvalId = await approved(task);
  const other = await openedTask();
  expect(await written(other, approvalId)).toBe(false);
  expect(await written(task, approvalId, { agent: 'another' })).toBe(false);
  expect(await written(task, approvalId, { workload: 'spiffe://dev.leasehold.test/agent/another' })).toBe(false);
  expect(await written(task, approvalId, { tool: 'another' })).toBe(false);
  expect(await written(task, approvalId, { tier: 'write' })).toBe(false);
  expect(await written(task, approvalId, { policyRevision: 'sha256:another' })).toBe(false);
  expect(await written(task, approvalId, {}, 'sha256:another')).toBe(false);
  expect(await written(task, newId('apr'))).toBe(false);
  expect(await leftOf(approvalId)).toEqual({ uses_left: 1, state: 'approved' });
  expect(await written(task, approvalId)).toBe(true);
  expect(await leftOf(approvalId)).toEqual({ uses_left: 0, state: 'used' });
  expect(await written(task, approvalId)).toBe(false);
});

test('what a task holds for one below it, a write takes for a task directly below it and of that agent alone', async () => {
  const parent = await openedTask();
  const below = ({ taskId, rootTaskId }: Task) => openedTask({ parentTaskId: taskId, rootTaskId });
  const child = await below(parent);
  const grandchild = await below(child);
  const elsewhere = await below(await openedTask());
  const held = { kind: 'for_child' as const, parentAgent: parent.agent, workload: undefined };
  const approvalId = await approved(parent, held);
  for (const task of [parent, grandchild, elsewhere]) expect(await written(task, approvalId)).toBe(false);
  expect(await written(child, approvalId, { agent: 'another' })).toBe(false);
  expect(await written(child, approvalId, { tier: 'write' })).toBe(false);
  expect(await written(child, approvalId, {}, 'sha256:another')).toBe(false);
  // What is the parent's own stays its own.
  expect(await written(child, await approved(parent))).toBe(false);
  expect(await leftOf(approvalId)).toEqual({ uses_left: 1, state: 'approved' });
  expect(await written(child, approvalId)).toBe(true);
  expect(await leftOf(approvalId)).toEqual({ uses_left: 0, state: 'used' });
});

test('a use that is given back to a task that holds it for one below is not held up by what it has for itself', async () => {
  const parent = await openedTask();
  const child = await openedTask({ parentTaskId: parent.taskId, rootTaskId: parent.rootTaskId });
  const approvalId = await approved(parent, { kind: 'for_child', parentAgent: parent.agent, workload: undefined });
  const lease = leaseOf(child, { state: 'pending', handle: 'a/b' });
  const approval = { approvalId, argumentsDigest: noArguments.digest };
  expect(await first.writer.insert({ ...writeOf(child, lease, { events: [] }), approval })).toBe(true);
  expect(await leftOf(approvalId)).toEqual({ uses_left: 0, state: 'used' });
  await approved(parent);
  await first.leases.abandon(
    lease,
    Date.now(),
    auditEvent(child, 'lease.abandoned', 'broker', Date.now(), {}, lease.leaseId),
  );
  expect(await leftOf(approvalId)).toEqual({ uses_left: 1, state: 'approved' });
});

test('nothing is asked for on behalf of tasks below once the task is not as it was', async () => {
  const parent = await openedTask();
  const wanted = { kind: 'for_child' as const, parentAgent: parent.agent, workload: undefined };
  const event = auditEvent(parent, 'task.closed', 'broker', Date.now(), {});
  await first.tasks.close(parent.tenant, parent.taskId, 'requested', Date.now(), event);
  await expect(approved(parent, wanted)).rejects.toMatchObject({ reason: 'IN_PROGRESS' });
  expect(await rows(database.url, 'SELECT FROM approvals WHERE task_id = $1', [parent.taskId])).toEqual([]);
});

test('an approval that has run out is nothing to a write, whether or not anybody has noticed', async () => {
  const task = await openedTask();
  const approvalId = await approved(task, { until: Date.now() - 1 });
  expect(await written(task, approvalId)).toBe(false);
  expect(await leftOf(approvalId)).toEqual({ uses_left: 1, state: 'approved' });
});

test('two replicas that write two hundred at once write as many as were approved', async () => {
  const task = await openedTask();
  const approvalId = await approved(task, { uses: 7 });
  const plain = await openedTask();
  const results = await Promise.all(
    Array.from({ length: 200 }, (_, index) =>
      written(task, approvalId, {}, undefined, index % 2 === 0 ? first : second),
    ),
  );
  // Between them others are written that need nobody.
  expect(await first.writer.insert(writeOf(plain, leaseOf(plain)))).toBe(true);
  expect(results.filter(Boolean)).toHaveLength(7);
  expect(await leftOf(approvalId)).toEqual({ uses_left: 0, state: 'used' });
  expect(await rows(database.url, 'SELECT FROM leases WHERE task_id = $1', [task.taskId])).toHaveLength(7);
  expect(await rows(database.url, 'SELECT FROM approval_uses WHERE approval_id = $1', [approvalId])).toHaveLength(7);
});

test('a request_id that was written before takes no second use', async () => {
  const task = await openedTask();
  const approvalId = await approved(task, { uses: 2 });
  const requestId = crypto.randomUUID();
  expect(await written(task, approvalId, { requestId })).toBe(true);
  expect(await written(task, approvalId, { requestId })).toBe(false);
  expect(await leftOf(approvalId)).toEqual({ uses_left: 1, state: 'approved' });
});

test('where in its line a lease was last issued on an approval is found from any later lease', async () => {
  const task = await openedTask();
  const approvalId = await approved(task);
  const store = first.approvals(outbox);
  const line = [leaseOf(task)];
  await first.writer.insert({
    ...writeOf(task, line[0]!),
    approval: { approvalId, argumentsDigest: noArguments.digest },
  });
  for (let count = 1; count <= 3; count++) {
    const next = leaseOf(task, { renewedFrom: line.at(-1)!.leaseId, renewalCount: count });
    await first.writer.insert(writeOf(task, next));
    line.push(next);
  }
  expect(await store.lastUse(line.at(-1)!)).toMatchObject({ renewalCount: 0 });
  const never = leaseOf(task);
  await first.writer.insert(writeOf(task, never));
  expect(await store.lastUse(never)).toBeUndefined();
});
