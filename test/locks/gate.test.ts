import pg from 'pg';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { auditEvent } from '../../src/domain/audit.ts';
import type { Task } from '../../src/domain/model.ts';
import type { Storage } from '../../src/storage/storage.ts';
import {
  createBrokerDatabase,
  insertedTask,
  leaseOf,
  openTestStorage,
  rows,
  taskOf,
  writeOf,
  type BrokerDatabase,
} from '../support/storage.ts';
import { liftLock, placeLock } from './support.ts';

/** What src/storage/lock-gate.ts claims, on three replicas: what is written after a lock was decided with it in view. */
let database: BrokerDatabase;
let replicas: Storage[];
beforeAll(async () => {
  database = await createBrokerDatabase('gate');
  replicas = await Promise.all([0, 1, 2].map(() => openTestStorage(database)));
});
afterAll(async () => {
  await Promise.all((replicas ?? []).map((replica) => replica.close()));
  await database?.drop();
});

const epochNow = async () => (await replicas[0]!.locks.view()).epoch;
const openTask = async (overrides: Partial<Task> = {}): Promise<Task> =>
  insertedTask(await replicas[0]!.tasks.insert({ ...taskOf(overrides), lockEpoch: await epochNow() }, []));

test('a write names the epoch of the locks that it was decided under, and another one writes nothing', async () => {
  const [storage, other] = [replicas[0]!, replicas[1]!];
  const task = await openTask();
  const lockEpoch = await epochNow();
  const [pending, active] = [leaseOf(task, { state: 'pending', provider: 'postgres' }), leaseOf(task)];
  for (const lease of [pending, active]) {
    expect(await storage.writer.insert(writeOf(task, lease, { lockEpoch }))).toBe(true);
  }
  const lock = await placeLock(other, { kind: 'agent', agent: 'somebody-else' });
  const again = { events: [auditEvent(task, 'lease.reissued', 'test', Date.now(), {}, active.leaseId)] };
  const every = (epoch: number) =>
    Promise.all([
      storage.writer.insert(writeOf(task, leaseOf(task), { lockEpoch: epoch })),
      storage.writer.insert(
        writeOf(task, leaseOf(task, { renewedFrom: active.leaseId }), { lockEpoch: epoch, supersedeAt: Date.now() }),
      ),
      storage.writer.activate(writeOf(task, pending, { lockEpoch: epoch })),
      storage.writer.reissue({ ...writeOf(task, active, { lockEpoch: epoch }), ...again }),
      storage.tasks.insert({ ...taskOf(), lockEpoch: epoch }, []).then((result) => !('refused' in result)),
    ]);
  expect(await every(lockEpoch)).toEqual([false, false, false, false, false]);
  expect(await rows(database.url, `SELECT FROM audit_events WHERE kind = 'lease.reissued'`)).toEqual([]);
  const view = await storage.locks.view();
  expect(view.epoch).toBe(lockEpoch + 1);
  expect(view.locks).toEqual([lock]);
  expect(await every(view.epoch)).toEqual([true, true, true, true, true]);
  await liftLock(storage, lock);
  expect(await storage.locks.view()).toEqual({ epoch: lockEpoch + 2, locks: [] });
});

test('writes of two epochs that wait together are told apart', async () => {
  const task = await openTask();
  const lockEpoch = await epochNow();
  const write = (epoch: number) => replicas[0]!.writer.insert(writeOf(task, leaseOf(task), { lockEpoch: epoch }));
  expect(await Promise.all([write(lockEpoch), write(lockEpoch - 1), write(lockEpoch)])).toEqual([true, false, true]);
});

/** Another session, in the middle of its transaction. */
async function session(): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: database.brokerUrl, options: '-c search_path=leasehold' });
  await client.connect();
  return client;
}

const waiting = (what: string) =>
  vi.waitFor(async () => {
    const found = await rows(database.url, `SELECT FROM pg_locks WHERE NOT granted AND relation = $1::regclass`, [
      what,
    ]);
    expect(found).toHaveLength(1);
  });

test('a write that waited for a lock to be placed sees it, although it was sent before', async () => {
  const task = await openTask();
  const lockEpoch = await epochNow();
  const placing = await session();
  try {
    await placing.query('BEGIN; LOCK TABLE lock_gate IN EXCLUSIVE MODE');
    const lease = leaseOf(task);
    const write = replicas[1]!.writer.insert(writeOf(task, lease, { lockEpoch }));
    await waiting('leasehold.lock_gate');
    await placing.query('UPDATE lock_state SET epoch = epoch + 1; COMMIT');
    expect(await write).toBe(false);
    expect(await rows(database.url, 'SELECT FROM leases WHERE lease_id = $1', [lease.leaseId])).toEqual([]);
  } finally {
    await placing.end();
  }
});

test('a lock waits for what is being written, and for nothing that comes after it', async () => {
  const [busy, free] = [await openTask(), await openTask()];
  const lockEpoch = await epochNow();
  const holding = await session();
  try {
    // As a close of its task does: the write is under way, with its snapshot of before the lock.
    await holding.query('BEGIN');
    await holding.query('SELECT FROM tasks WHERE task_id = $1 FOR UPDATE', [busy.taskId]);
    const early = replicas[1]!.writer.insert(writeOf(busy, leaseOf(busy), { lockEpoch }));
    await vi.waitFor(async () => {
      expect(
        await rows(database.url, `SELECT FROM pg_locks WHERE relation = 'leasehold.lock_gate'::regclass`),
      ).toHaveLength(1);
    });
    const placing = placeLock(replicas[0]!, { kind: 'all' });
    await waiting('leasehold.lock_gate');
    const late = replicas[2]!.writer.insert(writeOf(free, leaseOf(free), { lockEpoch }));
    await holding.query('COMMIT');
    const lock = await placing;
    expect([await early, await late]).toEqual([true, false]);
    await liftLock(replicas[0]!, lock);
  } finally {
    await holding.end();
  }
});

test('a lock that cannot get in lets the others go on, and tries again', async () => {
  const task = await openTask();
  const holding = await session();
  try {
    await holding.query('BEGIN; SELECT FROM lock_gate FOR KEY SHARE');
    const lockEpoch = await epochNow();
    const placing = placeLock(replicas[0]!, { kind: 'agent', agent: 'nobody' });
    await waiting('leasehold.lock_gate');
    // Behind the lock's first attempt; let through when that gives way.
    expect(await replicas[1]!.writer.insert(writeOf(task, leaseOf(task), { lockEpoch }))).toBe(true);
    await holding.query('COMMIT');
    await liftLock(replicas[0]!, await placing);
  } finally {
    await holding.end();
  }
});

test('a backup that reads every table holds no lock up', async () => {
  const backup = await session();
  try {
    await backup.query('BEGIN; LOCK TABLE lock_gate, lock_state, locks IN ACCESS SHARE MODE');
    await liftLock(replicas[0]!, await placeLock(replicas[0]!, { kind: 'tenant' }));
  } finally {
    await backup.end();
  }
});

test(
  '0 leases are committed after a lock, with many issues on three replicas and 40 locks',
  { timeout: 120_000 },
  async () => {
    const tasks = await Promise.all(Array.from({ length: 24 }, () => openTask()));
    // A replica that has not heard of any lock: it decides by the epoch that it last wrote under.
    const known = [await epochNow(), await epochNow(), await epochNow()];
    let going = true;
    let written = 0;
    let refused = 0;
    const issuing = tasks.map(async (task, index) => {
      const at = index % replicas.length;
      while (going) {
        const lockEpoch = known[at]!;
        if (
          await replicas[at]!.writer.insert(
            writeOf(task, leaseOf(task, { policyRule: `epoch ${lockEpoch}` }), { lockEpoch }),
          )
        ) {
          written += 1;
        } else {
          refused += 1;
          known[at] = Math.max(known[at]!, await epochNow());
        }
      }
    });
    const placed: { epoch: number; snapshot: string; lockId: string }[] = [];
    for (let round = 0; round < 40; round++) {
      const lock = await placeLock(replicas[round % replicas.length]!, { kind: 'all' });
      const [after] = await rows(
        database.url,
        'SELECT pg_current_snapshot()::text AS snapshot, epoch::int FROM lock_state',
      );
      placed.push({ ...(after as { snapshot: string; epoch: number }), lockId: lock.lockId });
      await new Promise((resolve) => setTimeout(resolve, 15));
      await liftLock(replicas[(round + 1) % replicas.length]!, lock);
    }
    going = false;
    await Promise.all(issuing);
    const late = async (cameLater: string) =>
      await rows(
        database.url,
        `WITH issued AS MATERIALIZED (
         SELECT l.lease_id, split_part(l.policy_rule, ' ', 2)::int AS epoch, l.xmin::text::xid8 AS xid, e.event_id
         FROM leases l JOIN audit_events e USING (tenant, task_id, lease_id) WHERE l.policy_rule LIKE 'epoch %'
       ), placed AS MATERIALIZED (
         SELECT p.epoch, p.snapshot, e.event_id
         FROM unnest($1::int[], $2::pg_snapshot[], $3::text[]) AS p(epoch, snapshot, lock_id)
         JOIN audit_events e ON e.kind = 'lock.created' AND e.detail ->> 'lock' = p.lock_id
       )
       SELECT i.lease_id FROM issued i JOIN placed p ON i.epoch < p.epoch WHERE ${cameLater}`,
        [placed.map(({ epoch }) => epoch), placed.map(({ snapshot }) => snapshot), placed.map(({ lockId }) => lockId)],
      );
    // Not to be seen in a snapshot that was taken after the lock had been placed: committed after it.
    expect(await late('NOT pg_visible_in_snapshot(i.xid, p.snapshot)')).toEqual([]);
    // Both sides take their event's number while they hold the gate: the order of numbers is the order of commits.
    expect(await late('i.event_id > p.event_id')).toEqual([]);
    expect(written).toBeGreaterThan(200);
    expect(refused).toBeGreaterThan(40);
  },
);
