import { expect, test } from 'vitest';
import type { Provider } from '../../src/domain/provider.ts';
import { createSettler } from '../../src/domain/settlement.ts';
import { insertedTask, leaseOf, storageFor, rows, taskOf, writeOf } from '../support/storage.ts';

/** One tenant with thousands to settle, longer due than the few of another: the few do not wait for the thousands. */
const { database, storage } = await storageFor('turns');

function settlerFor(severalTenants: boolean) {
  return createSettler({
    clock: { now: () => Date.now() },
    store: storage.settlement,
    providers: new Map([['jwt', { selfContained: true, kind: 'jwt' } as unknown as Provider]]),
    concurrency: 16,
    revokeTimeout: 10_000,
    patience: 200,
    settleBound: 3_600_000,
    severalTenants,
    giveUpAfter: 24 * 3_600_000,
    random: () => 0.5,
    sleep: async () => undefined,
    reached: () => undefined,
    emit: () => undefined,
  });
}

/** Tokens of one task that ran out so long ago. */
async function expired(tenant: string, count: number, ago: string): Promise<void> {
  const task = insertedTask(await storage.tasks.insert(taskOf({ tenant }), []));
  await Promise.all(Array.from({ length: count }, () => storage.writer.insert(writeOf(task, leaseOf(task)))));
  await rows(
    database.url,
    `UPDATE leases SET expires_at = now() - $2::interval, settle_at = now() - $2::interval WHERE task_id = $1`,
    [task.taskId, ago],
  );
}

/** Tasks without leases that were closed so long ago. */
async function closed(tenant: string, count: number, ago: string): Promise<void> {
  const { taskId } = insertedTask(await storage.tasks.insert(taskOf({ tenant }), []));
  const copied = [
    ...['tenant', 'request_digest', 'intent', 'agent', 'opener', 'tools', 'context', 'opened_at', 'deadline'],
    'close_cause',
  ].join();
  await rows(
    database.url,
    `INSERT INTO tasks (${copied}, task_id, root_task_id, request_id, state, closed_at)
     SELECT ${copied}, task_id || '-' || n, task_id || '-' || n, request_id || n, 'closing', now() - $3::interval
     FROM tasks, generate_series(1, $2::int) n WHERE task_id = $1`,
    [taskId, count, ago],
  );
}

const left = async (table: 'leases' | 'tasks', open: string) =>
  Object.fromEntries(
    (await rows(database.url, `SELECT tenant, count(*)::int AS n FROM ${table} WHERE ${open} GROUP BY tenant`)).map(
      ({ tenant, n }) => [tenant, n],
    ),
  );

test('the first round settles the tokens of each of them, and leaves the thousands for later ones', async () => {
  await expired('big', 1_700, '1 hour');
  await expired('small', 3, '1 minute');
  await expired('tiny', 1, '1 second');
  const settler = settlerFor(true);
  expect(await settler.tick()).toBe(true);
  expect(await left('leases', `state <> 'settled'`)).toEqual({ big: 1_200 });
  while (await settler.tick());
  expect(await left('leases', `state <> 'settled'`)).toEqual({});
});

test('where there is one tenant the oldest go first and nobody else is looked for', async () => {
  await expired('big', 600, '1 hour');
  await expired('small', 3, '1 minute');
  const settler = settlerFor(false);
  await settler.tick();
  expect(await left('leases', `state <> 'settled'`)).toEqual({ big: 100, small: 3 });
  while (await settler.tick());
});

test('tasks are finished in turn as well', async () => {
  await closed('big', 4_100, '1 hour');
  await closed('small', 2, '1 minute');
  const settler = settlerFor(true);
  expect(await settler.tick()).toBe(true);
  expect(await left('tasks', `closed_at IS NOT NULL AND settled_at IS NULL`)).toEqual({ big: 2_100 });
  while (await settler.tick());
  expect(await left('tasks', `closed_at IS NOT NULL AND settled_at IS NULL`)).toEqual({});
});
