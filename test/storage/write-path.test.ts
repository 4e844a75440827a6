import { afterAll, beforeAll, expect, test } from 'vitest';
import { auditEvent } from '../../src/domain/audit.ts';
import type { Task } from '../../src/domain/model.ts';
import { transaction } from '../../src/storage/pool.ts';
import type { Storage } from '../../src/storage/storage.ts';
import { asSuperuser } from '../support/postgres.ts';
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
let storage: Storage;
let replica: Storage;
beforeAll(async () => {
  database = await createBrokerDatabase('write');
  storage = await openTestStorage(database);
  replica = await openTestStorage(database);
});
afterAll(async () => {
  await storage.close();
  await replica.close();
  await database.drop();
});

async function openTask(overrides: Partial<Task> = {}): Promise<Task> {
  return insertedTask(await storage.tasks.insert(taskOf(overrides), []));
}

const closeEvent = (task: Task) => auditEvent(task, 'task.closed', 'test', Date.now(), {});
const closeTask = (task: Task, on = storage) =>
  on.tasks.close(task.tenant, task.taskId, 'requested', Date.now(), closeEvent(task));
const eventsOf = (task: Task) =>
  rows(database.url, 'SELECT kind, lease_id FROM audit_events WHERE task_id = $1 ORDER BY event_id', [task.taskId]);

test('a lease and its audit event are written together, many in one transaction', async () => {
  const task = await openTask();
  const leases = Array.from({ length: 50 }, () => leaseOf(task));
  const results = await Promise.all(leases.map((lease) => storage.writer.insert(writeOf(task, lease))));
  expect(results).toEqual(leases.map(() => true));
  expect((await eventsOf(task)).map((event) => event.lease_id).sort()).toEqual(leases.map((l) => l.leaseId).sort());
  const written = await rows(
    database.url,
    'SELECT count(DISTINCT xmin::text)::int AS n FROM leases WHERE task_id = $1',
    [task.taskId],
  );
  expect(written[0]!.n).toBeLessThan(10);
  expect(await storage.leases.get(task.tenant, leases[0]!.leaseId)).toMatchObject(leases[0]!);
});

test('nothing is written for a task that is closed, at another epoch, past its deadline or of another tenant', async () => {
  const closed = await openTask();
  await closeTask(closed);
  const late = await openTask({ openedAt: Date.now() - 10_000, deadline: Date.now() - 1 });
  const open = await openTask();
  const writes = [
    writeOf(closed, leaseOf(closed)),
    writeOf(late, leaseOf(late)),
    writeOf({ ...open, epoch: open.epoch + 1 }, leaseOf(open)),
    writeOf(open, leaseOf({ ...open, tenant: 'other' })),
  ];
  expect(await Promise.all(writes.map((write) => storage.writer.insert(write)))).toEqual([false, false, false, false]);
  expect(
    await rows(database.url, 'SELECT FROM leases WHERE task_id = ANY($1)', [[closed, late, open].map((t) => t.taskId)]),
  ).toHaveLength(0);
  expect(await eventsOf(late)).toHaveLength(0);
});

test('one request_id makes one lease, also when two calls are written in the same transaction', async () => {
  const task = await openTask();
  const requestId = crypto.randomUUID();
  const results = await Promise.all([
    storage.writer.insert(writeOf(task, leaseOf(task, { requestId }))),
    storage.writer.insert(writeOf(task, leaseOf(task, { requestId }))),
    replica.writer.insert(writeOf(task, leaseOf(task, { requestId }))),
  ]);
  expect(results.filter(Boolean)).toHaveLength(1);
  expect(await rows(database.url, 'SELECT FROM leases WHERE task_id = $1', [task.taskId])).toHaveLength(1);
  expect(await eventsOf(task)).toHaveLength(1);
});

test('a renewal ends the lease that it renews, once', async () => {
  const task = await openTask();
  const first = leaseOf(task);
  await storage.writer.insert(writeOf(task, first));
  const supersedeAt = Date.now() + 30_000;
  const renewal = () =>
    storage.writer.insert(
      writeOf(task, leaseOf(task, { renewedFrom: first.leaseId, renewalCount: 1 }), { supersedeAt }),
    );
  expect((await Promise.all([renewal(), renewal()])).filter(Boolean)).toHaveLength(1);
  expect(await renewal()).toBe(false);
  const [row] = await rows(database.url, 'SELECT settle_at, settle_cause, state FROM leases WHERE lease_id = $1', [
    first.leaseId,
  ]);
  expect(row).toEqual({ settle_at: new Date(supersedeAt), settle_cause: 'superseded', state: 'active' });
});

test('a commit that the database refuses is an error for its own row and for no other', async () => {
  const task = await openTask();
  const bad = leaseOf(task, { tool: 'poison' });
  await asSuperuser(database.url, (client) =>
    client.query(`SET search_path = leasehold;
      CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
      CREATE TRIGGER refuse BEFORE INSERT ON leases FOR EACH ROW WHEN (NEW.tool = 'poison') EXECUTE FUNCTION refuse()`),
  );
  const good = Array.from({ length: 5 }, () => leaseOf(task));
  const results = await Promise.allSettled([bad, ...good].map((lease) => storage.writer.insert(writeOf(task, lease))));
  expect(results[0]).toMatchObject({ status: 'rejected', reason: { reason: 'STORAGE_UNAVAILABLE' } });
  expect(results.slice(1)).toEqual(good.map(() => ({ status: 'fulfilled', value: true })));
});

test('an issue whose audit event cannot be written is not written either (fault 18)', async () => {
  const task = await openTask();
  await asSuperuser(database.url, (client) =>
    client.query(`SET search_path = leasehold;
      CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'full' USING ERRCODE = '53100'; END $$;
      CREATE TRIGGER full_disk BEFORE INSERT ON audit_events FOR EACH ROW WHEN (NEW.actor = 'full') EXECUTE FUNCTION full_disk()`),
  );
  const lease = leaseOf(task);
  const write = writeOf(task, lease, {
    events: [auditEvent(task, 'lease.issued', 'full', Date.now(), {}, lease.leaseId)],
  });
  await expect(storage.writer.insert(write)).rejects.toMatchObject({ reason: 'STORAGE_UNAVAILABLE' });
  expect(await storage.leases.get(task.tenant, lease.leaseId)).toBeUndefined();
});

test(
  'a close and issues race on two replicas: no lease is committed after the close (fault 5)',
  { timeout: 120_000 },
  async () => {
    const rounds = 1_000;
    const stragglers: unknown[] = [];
    const round = async () => {
      const task = await openTask();
      const writing = [storage, replica, storage, replica].map((on) => on.writer.insert(writeOf(task, leaseOf(task))));
      const closing = closeTask(task, Math.random() < 0.5 ? storage : replica);
      const [written] = await Promise.all([Promise.all(writing), closing]);
      // What the close left must be what was written: none of it alive.
      const left = await rows(database.url, 'SELECT state FROM leases WHERE task_id = $1', [task.taskId]);
      if (left.length !== written.filter(Boolean).length || left.some((row) => row.state !== 'settled')) {
        stragglers.push({ left, written });
      }
    };
    for (let done = 0; done < rounds; done += 20) await Promise.all(Array.from({ length: 20 }, round));
    expect(stragglers).toEqual([]);
  },
);

test('the broker can neither change nor remove an audit event, nor make a table', async () => {
  const attempts = [
    "UPDATE audit_events SET actor = 'x'",
    'DELETE FROM audit_events',
    'TRUNCATE audit_events',
    'DELETE FROM leases',
    'DROP TABLE leases',
    'CREATE TABLE leasehold.mine ()',
    'UPDATE policy_revisions SET documents = NULL',
  ];
  for (const sql of attempts) {
    await expect(storage.pool.query(sql), sql).rejects.toMatchObject({ code: '42501' });
  }
});

test('the broker goes on after its connections were cut', async () => {
  const task = await openTask();
  await storage.writer.insert(writeOf(task, leaseOf(task)));
  await asSuperuser(database.url, (client) =>
    client.query(
      `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'leasehold'`,
    ),
  );
  // The first write may meet the broken connection: it is refused, not lost.
  const first = await storage.writer
    .insert(writeOf(task, leaseOf(task)))
    .catch((error: { reason: string }) => error.reason);
  expect([true, 'STORAGE_UNAVAILABLE']).toContain(first);
  await expect.poll(() => storage.writer.insert(writeOf(task, leaseOf(task))).catch(() => false)).toBe(true);
});

test('a connection that is lost in the middle of a transaction fails it, and not the process', async () => {
  const uncaught: unknown[] = [];
  const listener = (error: unknown) => uncaught.push(error);
  process.on('uncaughtExceptionMonitor', listener);
  const lost = transaction(storage.pool, async (client) => {
    const { rows: own } = await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    await asSuperuser(database.url, (other) => other.query('SELECT pg_terminate_backend($1, 5000)', [own[0]!.pid]));
    // Long enough for the loss to arrive while no statement runs.
    await new Promise((resolve) => setTimeout(resolve, 100));
    await client.query('SELECT 1');
  });
  await expect(lost).rejects.toMatchObject({ reason: 'STORAGE_UNAVAILABLE' });
  process.off('uncaughtExceptionMonitor', listener);
  expect(uncaught).toEqual([]);
});

test('a task past its deadline that no worker has closed yet is not brought back, by nobody', async () => {
  const over = await openTask({ openedAt: Date.now() - 10_000, deadline: Date.now() - 1 });
  const event = auditEvent(over, 'task.extended', 'test', Date.now(), {});
  expect(await storage.tasks.extend(over, Date.now() + 60_000, event, () => event)).toBeUndefined();
  const to = { agent: 'another', workload: 'spiffe://dev.leasehold.test/agent/another' };
  const { handOver } = storage.handover({ endpoints: () => [], newId });
  const handed = await handOver(over, to, crypto.randomUUID(), Date.now(), event, () => {
    throw new Error('nothing was asked');
  });
  expect(handed).toBeUndefined();
  expect(await storage.tasks.get(over.tenant, over.taskId)).toEqual(over);
  expect(await eventsOf(over)).toEqual([]);
});

test('a clock that is set while it is compared with the database’s is compared again', async () => {
  const hour = 3_600_000;
  let looks = 0;
  const offset = await storage.clockOffset(() => Date.now() + (looks++ === 0 ? 0 : hour));
  expect(Math.abs(offset + hour)).toBeLessThan(hour / 4);
});
