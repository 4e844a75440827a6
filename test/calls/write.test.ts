import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { recordedEvents } from '../../src/domain/calls/events.ts';
import type { ToolCall } from '../../src/domain/calls/model.ts';
import { auditEvent } from '../../src/domain/audit.ts';
import type { Task } from '../../src/domain/model.ts';
import { openStorage, type Storage } from '../../src/storage/storage.ts';
import { createBrokerDatabase, insertedTask, newId, rows, taskOf, type BrokerDatabase } from '../support/storage.ts';

let database: BrokerDatabase;
let storage: Storage;
let replica: Storage;
beforeAll(async () => {
  database = await createBrokerDatabase('calls');
  const options = { url: database.brokerUrl, poolSize: 8, onError: () => undefined, maxCallsPerTask: 20 };
  storage = await openStorage(options);
  replica = await openStorage(options);
});
afterAll(async () => {
  await storage.close();
  await replica.close();
  await database.drop();
});

async function openTask(): Promise<Task> {
  return insertedTask(await storage.tasks.insert(taskOf(), []));
}

function callOf(task: Task, overrides: Partial<ToolCall> = {}): ToolCall {
  const now = Date.now();
  return {
    tenant: task.tenant,
    callId: newId('cal'),
    taskId: task.taskId,
    rootTaskId: task.rootTaskId,
    requestId: crypto.randomUUID(),
    requestDigest: 'digest',
    agent: task.agent,
    workload: task.agentWorkload!,
    chain: [],
    intent: task.intent,
    reporter: 'agent',
    reportedBy: task.agentWorkload!,
    tool: 'reports',
    tier: 'read',
    leaseId: undefined,
    action: 'reports.read',
    argumentsDigest: undefined,
    arguments: undefined,
    target: undefined,
    aboutCallId: undefined,
    peer: undefined,
    timesStated: false,
    startedAt: now,
    recordedAt: now,
    endedAt: undefined,
    end: undefined,
    endRequestId: undefined,
    endDigest: undefined,
    unfinishedAt: undefined,
    violations: [],
    ...overrides,
  };
}

const write = (call: ToolCall, on = storage) => on.calls.insert({ call, events: recordedEvents(call) });
const eventsOf = (task: Task) =>
  rows(
    database.url,
    `SELECT kind, detail ->> 'call_id' AS call FROM audit_events WHERE task_id = $1 AND kind LIKE 'call.%' ORDER BY event_id`,
    [task.taskId],
  );

async function settle(task: Task, on = storage): Promise<void> {
  await on.tasks.close(
    task.tenant,
    task.taskId,
    'requested',
    Date.now(),
    auditEvent(task, 'task.closed', 'test', Date.now(), {}),
  );
  await on.settlement.completeTasks(Date.now(), 100);
}

test('a record and its events are written together, many in one transaction, and come back as they were', async () => {
  const task = await openTask();
  const end = {
    outcome: 'failed' as const,
    error: 'no answer',
    effect: { objects: ['a'], rows: 0, externalIds: ['b'], note: 'c' },
  };
  const full = callOf(task, {
    leaseId: newId('lse'),
    chain: [{ taskId: newId('tsk'), agent: 'lead', workload: undefined, opener: 'x' }],
    argumentsDigest: 'sha256:1',
    arguments: { shop: 'acme', amount: 1 },
    target: { provider: 'jwt', resource: 'https://r' },
    aboutCallId: newId('cal'),
    peer: { workload: 'w', address: '192.0.2.1' },
    timesStated: true,
    endedAt: Date.now(),
    end,
    violations: ['no_lease', 'other_tier'],
  });
  const calls = [full, ...Array.from({ length: 11 }, () => callOf(task))];
  const results = await Promise.all(calls.map((call) => write(call)));
  expect(results.every(({ written, full: isFull }) => written && !isFull)).toBe(true);
  expect(await storage.calls.get(task.tenant, full.callId)).toEqual(full);
  expect(await storage.calls.get('other', full.callId)).toBeUndefined();
  const [transactions] = await rows(
    database.url,
    'SELECT count(DISTINCT xmin::text)::int AS n FROM tool_calls WHERE task_id = $1',
    [task.taskId],
  );
  expect(transactions!.n).toBeLessThan(6);
  expect((await eventsOf(task)).map(({ kind }) => kind).sort()).toEqual([
    ...Array.from({ length: 11 }, () => 'call.began'),
    'call.raised',
    'call.recorded',
  ]);
});

test('one request_id of one reporter is one record, on any replica', async () => {
  const task = await openTask();
  const requestId = crypto.randomUUID();
  const results = await Promise.all(
    [storage, replica, storage, replica].map((on) => write(callOf(task, { requestId }), on)),
  );
  expect(results.filter(({ written }) => written)).toHaveLength(1);
  expect(await eventsOf(task)).toHaveLength(1);
});

test('an event that cannot be written takes its record with it, and no other', async () => {
  await rows(
    database.url,
    `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'full'; END $$;
     CREATE TRIGGER refuse BEFORE INSERT ON audit_events FOR EACH ROW
       WHEN (NEW.detail ->> 'action' = 'refuse.me') EXECUTE FUNCTION refuse()`,
  );
  const task = await openTask();
  const calls = ['a', 'refuse.me', 'b'].map((action) => callOf(task, { action }));
  const results = await Promise.allSettled(calls.map((call) => write(call)));
  expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
  expect(results[1]).toMatchObject({ reason: { reason: 'STORAGE_UNAVAILABLE' } });
  const left = await rows(database.url, 'SELECT action FROM tool_calls WHERE task_id = $1 ORDER BY action', [
    task.taskId,
  ]);
  expect(left.map(({ action }) => action)).toEqual(['a', 'b']);
  const [count] = await rows(database.url, 'SELECT recorded FROM tool_call_counts WHERE task_id = $1', [task.taskId]);
  expect(count!.recorded).toBe(2);
  await rows(database.url, 'DROP TRIGGER refuse ON audit_events');
});

test('the write that reaches the bound of a task says so, once over all replicas', async () => {
  const task = await openTask();
  const results = await Promise.all(
    Array.from({ length: 30 }, (_, n) => write(callOf(task), n % 2 === 0 ? storage : replica)),
  );
  expect(results.some(({ full }) => full)).toBe(true);
  expect((await write(callOf(task))).full).toBe(true);
  expect((await eventsOf(task)).filter(({ kind }) => kind === 'call.limit_reached')).toHaveLength(1);
});

test('calls that begin while their task settles are never left running, on two replicas', async () => {
  for (let round = 0; round < 15; round++) {
    const task = await openTask();
    const begun = [0, 1, 2, 3].map((n) => write(callOf(task), n % 2 === 0 ? storage : replica));
    const [results] = await Promise.all([Promise.all(begun), settle(task, replica)]);
    expect(results.every(({ written }) => written)).toBe(true);
    await replica.settlement.completeTasks(Date.now(), 100);
    const running = await rows(
      database.url,
      `SELECT count(*)::int AS n FROM tool_calls c JOIN tasks t USING (tenant, task_id)
       WHERE task_id = $1 AND t.settled_at IS NOT NULL AND c.ended_at IS NULL AND c.unfinished_at IS NULL`,
      [task.taskId],
    );
    expect(running[0]!.n).toBe(0);
    const [settled] = await rows(database.url, 'SELECT settled_at FROM tasks WHERE task_id = $1', [task.taskId]);
    expect(settled!.settled_at).not.toBeNull();
  }
});

test('a call that waits for the settlement of its task is unfinished from the start', async () => {
  const task = await openTask();
  const settling = new pg.Client({ connectionString: database.url });
  await settling.connect();
  try {
    await settling.query('BEGIN');
    await settling.query(
      "UPDATE leasehold.tasks SET state = 'closed', closed_at = now(), settled_at = now() WHERE task_id = $1",
      [task.taskId],
    );
    const waiting = write(callOf(task));
    const blocked = `SELECT count(*)::int AS n FROM pg_stat_activity
      WHERE wait_event_type = 'Lock' AND datname = current_database()`;
    await expect.poll(async () => (await rows(database.url, blocked))[0]!.n).toBe(1);
    await settling.query('COMMIT');
    expect((await waiting).unfinishedAt).toBeDefined();
  } finally {
    await settling.end();
  }
});

test('a call is ended once, whoever asks at the same moment', async () => {
  const task = await openTask();
  const call = callOf(task);
  await write(call);
  const ends = await Promise.all(
    [storage, storage, replica].map((on, n) =>
      on.calls.end({
        call,
        end: { outcome: 'succeeded', error: '', effect: undefined },
        endedAt: Date.now(),
        requestId: `request ${n}`,
        digest: 'digest',
        events: [auditEvent(task, 'call.ended', 'test', Date.now(), { call_id: call.callId })],
        lateEvents: [],
      }),
    ),
  );
  expect(ends.filter((ended) => ended !== undefined)).toHaveLength(1);
  const stored = await storage.calls.get(task.tenant, call.callId);
  expect(stored!.endRequestId).toBe(ends.find((ended) => ended !== undefined)!.endRequestId);
  expect((await eventsOf(task)).map(({ kind }) => kind)).toEqual(['call.began', 'call.ended']);
});

test('the broker may write a record and its end, and change or remove nothing else', async () => {
  const task = await openTask();
  const call = callOf(task);
  await write(call);
  const attempt = (text: string) =>
    storage.pool.query(text).then(
      () => 'done',
      (error: { code?: string }) => error.code,
    );
  for (const column of ['action', 'tool', 'lease_id', 'reported_by', 'workload', 'recorded_at', 'chain', 'target']) {
    expect(await attempt(`UPDATE tool_calls SET ${column} = ${column} WHERE call_id = '${call.callId}'`), column).toBe(
      '42501',
    );
  }
  for (const text of [
    'DELETE FROM tool_calls',
    'TRUNCATE tool_calls',
    'DELETE FROM tool_call_counts',
    'UPDATE tool_call_counts SET task_id = task_id',
  ]) {
    expect(await attempt(text), text).toBe('42501');
  }
});
