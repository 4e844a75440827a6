import { expect, test } from 'vitest';
import { auditEvent } from '../../src/domain/audit.ts';
import type { Lease, Task } from '../../src/domain/model.ts';
import { insertedTask, leaseOf, storageFor, rows, taskOf, writeOf } from '../support/storage.ts';

const { database, storage } = await storageFor('settle');

const openTask = async (overrides: Partial<Task> = {}) =>
  insertedTask(await storage.tasks.insert(taskOf(overrides), []));
const closeTask = (task: Task) =>
  storage.tasks.close(
    task.tenant,
    task.taskId,
    'requested',
    Date.now(),
    auditEvent(task, 'task.closed', 'test', Date.now(), {}),
  );
async function issue(task: Task, overrides: Partial<Lease> = {}): Promise<Lease> {
  const lease = leaseOf(task, overrides);
  expect(await storage.writer.insert(writeOf(task, lease))).toBe(true);
  return lease;
}
const outcomeOf = async (lease: Lease) => {
  const { outcome, deadBy } = (await storage.leases.get(lease.tenant, lease.leaseId))!;
  return { outcome, deadBy };
};

test("a closed task's tokens are one entry on the feed, and each lease has the outcome of its kind", async () => {
  const task = await openTask();
  const immediate = await issue(task);
  const bounded = await issue(task, { revocationKind: 'bounded' });
  const none = await issue(task, { revocationKind: 'none' });
  const over = await issue(task, { expiresAt: Date.now() - 1 });
  await closeTask(task);
  await storage.settlement.settleSelfContained(['jwt'], Date.now(), 500);
  expect(await outcomeOf(immediate)).toEqual({ outcome: 'revoked', deadBy: undefined });
  expect(await outcomeOf(bounded)).toEqual({ outcome: 'bounded', deadBy: bounded.expiresAt });
  expect(await outcomeOf(none)).toEqual({ outcome: 'bounded', deadBy: none.expiresAt });
  expect(await outcomeOf(over)).toEqual({ outcome: 'expired', deadBy: undefined });
  const entries = (await storage.revocations.after(task.tenant, 0, 1_000)).filter(
    (entry) => entry.taskId === task.taskId || entry.leaseId !== undefined,
  );
  const last = Math.max(immediate.expiresAt, bounded.expiresAt, none.expiresAt);
  expect(entries).toMatchObject([{ taskId: task.taskId, leaseId: undefined, forgetAt: last }]);
  expect(await storage.settlement.completeTasks(Date.now(), 500)).toContainEqual({
    tenant: task.tenant,
    taskId: task.taskId,
    state: 'closed',
  });
  expect((await storage.tasks.get(task.tenant, task.taskId))?.state).toBe('closed');
});

test('a returned token is an entry of its own', async () => {
  const task = await openTask();
  const lease = await issue(task);
  await storage.leases.beginReturn(
    lease,
    Date.now() + 60_000,
    auditEvent(task, 'lease.returned', 'test', Date.now(), {}, lease.leaseId),
  );
  await storage.settlement.settleSelfContained(['jwt'], Date.now(), 1, lease);
  expect(await outcomeOf(lease)).toEqual({ outcome: 'returned', deadBy: undefined });
  const entries = await storage.revocations.after(task.tenant, 0, 1_000);
  expect(entries.filter((entry) => entry.leaseId === lease.leaseId)).toHaveLength(1);
});

test('an entry that is committed after a higher position is still delivered', async () => {
  const task = await openTask();
  const early = await storage.pool.connect();
  await early.query('BEGIN');
  await early.query(
    `INSERT INTO revocations (tenant, lease_id, revoked_at, forget_at) VALUES ('default', 'early', now(), now() + '1h')`,
  );
  const start = await storage.revocations.begin(task.tenant, undefined);
  await storage.pool.query(
    `INSERT INTO revocations (tenant, lease_id, revoked_at, forget_at) VALUES ('default', 'late', now(), now() + '1h')`,
  );
  const first = await storage.revocations.tail(task.tenant, start.horizon, Date.now() - 60_000);
  expect(first.entries.map((entry) => entry.leaseId)).toContain('late');
  expect(first.entries.map((entry) => entry.leaseId)).not.toContain('early');
  await early.query('COMMIT');
  early.release();
  const second = await storage.revocations.tail(task.tenant, first.horizon, Date.now() - 60_000);
  expect(second.entries.map((entry) => entry.leaseId)).toContain('early');
});

test('a follower that was away is given what was being committed when it went, and nothing older', async () => {
  const tenant = 'away';
  const insert = (lease: string, at: string) =>
    `INSERT INTO revocations (tenant, lease_id, revoked_at, forget_at)
     VALUES ('${tenant}', '${lease}', ${at}, now() + interval '5 hours')`;
  await storage.pool.query(insert('old', `now() - interval '3 hours'`));
  const early = await storage.pool.connect();
  await early.query('BEGIN');
  await early.query(insert('early', `now() - interval '1 hour 10 seconds'`));
  await storage.pool.query(insert('seen', `now() - interval '1 hour'`));
  const last = (await storage.revocations.after(tenant, 0, 10)).at(-1)!;
  expect(last.leaseId).toBe('seen');
  await early.query('COMMIT');
  early.release();
  await storage.pool.query(insert('new', 'now()'));

  const { position } = await storage.revocations.begin(tenant, last.revokedAt - 60_000);
  const again = (await storage.revocations.after(tenant, position, 10)).map(({ leaseId }) => leaseId);
  expect(again).toEqual(['early', 'seen', 'new']);
  const none = await storage.revocations.begin(tenant, Date.now() + 60_000);
  expect(await storage.revocations.after(tenant, none.position, 10)).toEqual([]);
});

test('a due lease is claimed by one replica only, and by another when the claim has run out', async () => {
  const task = await openTask();
  const leases = await Promise.all(
    Array.from({ length: 20 }, () => issue(task, { provider: 'postgres', handle: 'target/role' })),
  );
  await closeTask(task);
  const now = Date.now();
  const claims = await Promise.all(
    Array.from({ length: 4 }, () => storage.settlement.claim(['postgres'], now, 10_000, 10, [])),
  );
  expect(
    claims
      .flat()
      .map((lease) => lease.leaseId)
      .sort(),
  ).toEqual(leases.map((lease) => lease.leaseId).sort());
  expect(await storage.settlement.claim(['postgres'], now + 9_999, 10_000, 10, [])).toEqual([]);
  expect(await storage.settlement.claim(['postgres'], now + 10_001, 10_000, 100, ['target'])).toEqual([]);
  expect(await storage.settlement.claim(['postgres'], now + 10_001, 10_000, 100, [])).toHaveLength(20);
});

test('an outcome is recorded once, with one event', async () => {
  const task = await openTask();
  const lease = await issue(task, { provider: 'postgres', handle: 'target/role2' });
  await closeTask(task);
  const [claimed] = (await storage.settlement.claim(['postgres'], Date.now(), 10_000, 100, [])).filter(
    (candidate) => candidate.leaseId === lease.leaseId,
  );
  const result = { lease: claimed!, outcome: 'revoked' as const, deadBy: undefined };
  await Promise.all([
    storage.settlement.settled([result], Date.now()),
    storage.settlement.settled([result], Date.now()),
  ]);
  const events = await rows(database.url, `SELECT FROM audit_events WHERE lease_id = $1 AND kind = 'lease.settled'`, [
    lease.leaseId,
  ]);
  expect(events).toHaveLength(1);
});

test("an abandoned lease frees its request_id, so that the agent's retry is a fresh issue", async () => {
  const task = await openTask();
  const lease = await issue(task, { provider: 'postgres', handle: 'target/role3', state: 'pending' });
  await storage.leases.abandon(
    lease,
    Date.now(),
    auditEvent(task, 'lease.abandoned', 'broker', Date.now(), {}, lease.leaseId),
  );
  expect(await storage.leases.byRequest(task.tenant, task.taskId, lease.requestId)).toBeUndefined();
  await issue(task, { requestId: lease.requestId });
});

test('closing closes the subtree, also below a task that is closed already', async () => {
  const root = await openTask();
  const child = await openTask({ parentTaskId: root.taskId, rootTaskId: root.taskId });
  const grandchild = await openTask({ parentTaskId: child.taskId, rootTaskId: root.taskId });
  await rows(
    database.url,
    `UPDATE tasks SET state = 'closed', closed_at = now(), settled_at = now() WHERE task_id = $1`,
    [child.taskId],
  );
  await issue(grandchild);
  expect(await closeTask(root)).toMatchObject({ changed: true, task: { state: 'closing', closeCause: 'requested' } });
  expect(await storage.tasks.get(root.tenant, grandchild.taskId)).toMatchObject({
    state: 'closing',
    closeCause: 'parent_closed',
  });
  expect(await storage.writer.insert(writeOf(grandchild, leaseOf(grandchild)))).toBe(false);
});

test('a task that stays unsettled beyond the bound is degraded, and closed when its last lease has an outcome', async () => {
  const task = await openTask();
  const lease = await issue(task, { provider: 'postgres', handle: 'target/role4' });
  await closeTask(task);
  expect(await storage.settlement.degradeTasks(Date.now() + 1, Date.now())).toContainEqual({
    tenant: task.tenant,
    taskId: task.taskId,
    state: 'close_degraded',
  });
  const state = async () => (await storage.tasks.get(task.tenant, task.taskId))?.state;
  expect(await state()).toBe('close_degraded');
  const claimed = await storage.settlement.claim(['postgres'], Date.now(), 10_000, 100, []);
  await storage.settlement.settled(
    claimed.map((each) => ({ lease: each, outcome: 'revoked', deadBy: undefined })),
    Date.now(),
  );
  expect(claimed.map((each) => each.leaseId)).toContain(lease.leaseId);
  await storage.settlement.completeTasks(Date.now(), 500);
  expect(await state()).toBe('closed');
});
