import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Caller } from '../../src/domain/caller.ts';
import { createLockGuard } from '../../src/domain/locks/guard.ts';
import { createLocks, type Locks, type WantedScope } from '../../src/domain/locks/locks.ts';
import { openLockWatch } from '../../src/domain/locks/watch.ts';
import type { PolicySource } from '../../src/domain/policy.ts';
import type { Storage } from '../../src/storage/storage.ts';
import { createBrokerDatabase, newId, openTestStorage, taskOf, type BrokerDatabase } from '../support/storage.ts';

/** Two tenants and the operators of each; the home tenant runs the broker. */
let database: BrokerDatabase;
let storage: Storage;
let locks: Locks;
let lockOf: (tenant: string) => Promise<string | undefined>;
beforeAll(async () => {
  database = await createBrokerDatabase('locktenants');
  storage = await openTestStorage(database);
  const watch = await openLockWatch(storage.locks);
  const guard = createLockGuard({ watch, get: (tenant, taskId) => storage.tasks.get(tenant, taskId) });
  const revision = { agents: new Map([['analyst', {}]]), tools: new Map() };
  locks = createLocks({
    clock: { now: () => Date.now() },
    newId,
    policy: { current: () => revision, tenants: ['default', 'acme'] } as unknown as PolicySource,
    store: storage.locks,
    watch,
    tasks: storage.tasks,
    homeTenant: 'default',
    maxTtl: 86_400_000,
    peopleToLift: 1,
    kickSettling: () => undefined,
    emit: () => undefined,
  });
  lockOf = async (tenant) => (await guard.fresh({ ...taskOf(), tenant }, undefined, undefined)).lock?.lockId;
});
afterAll(async () => {
  await storage?.close();
  await database?.drop();
});

function operatorOf(tenant: string, agents: string[] = []): Caller {
  return {
    workload: `spiffe://${tenant}.test/operator`,
    tenant,
    kind: 'jwt-svid',
    issuer: `${tenant}.test`,
    expiresAt: Date.now() + 60_000,
    roles: new Set(['operator']),
    agents: new Set(agents),
  } as Caller;
}

const [home, acme] = [operatorOf('default'), operatorOf('acme')];
const create = (caller: Caller, scope: WantedScope) =>
  locks.create(caller, { requestId: crypto.randomUUID(), scope, reason: 'drill', expiresAt: undefined, settle: false });
const listed = async (caller: Caller) =>
  (await locks.list(caller, { inForce: true, taskId: undefined, pageSize: 50, after: undefined })).items;

test('a tenant locks its own work, and neither sees nor touches that of another', async () => {
  const { lockId } = await create(acme, { kind: 'agent', agent: 'analyst' });
  expect([await lockOf('acme'), await lockOf('default')]).toEqual([lockId, undefined]);
  expect(await listed(home)).toEqual([]);
  await expect(locks.get(home, lockId)).rejects.toMatchObject({ reason: 'LOCK_NOT_FOUND' });
  await expect(locks.lift(home, lockId, 'x')).rejects.toMatchObject({ reason: 'LOCK_NOT_FOUND' });
  await expect(create(acme, { kind: 'all' })).rejects.toMatchObject({ reason: 'ROLE_REQUIRED' });
  await expect(create(acme, { kind: 'tenant', tenant: 'default' })).rejects.toMatchObject({ reason: 'ROLE_REQUIRED' });
  await locks.lift(acme, lockId, 'over');
  expect(await lockOf('acme')).toBeUndefined();
});

test('those who run the broker lock another tenant, which sees that it is locked, not by whom, and cannot lift it', async () => {
  const placed = await create(home, { kind: 'tenant', tenant: 'acme' });
  expect([await lockOf('acme'), await lockOf('default')]).toEqual([placed.lockId, undefined]);
  expect(await listed(acme)).toMatchObject([{ lockId: placed.lockId, placedBy: 'the operators of the broker' }]);
  await expect(locks.lift(acme, placed.lockId, 'x')).rejects.toMatchObject({ reason: 'ROLE_REQUIRED' });
  expect(await listed(home)).toMatchObject([{ lockId: placed.lockId, placedBy: home.workload }]);
  await locks.lift(home, placed.lockId, 'over');
});

test('a tenant that is not configured cannot be locked, and others are not told which are', async () => {
  await expect(create(home, { kind: 'tenant', tenant: 'acmee' })).rejects.toMatchObject({
    reason: 'NAME_UNKNOWN',
    message: expect.stringContaining('default, acme') as string,
  });
  const answers = await Promise.all(
    ['acmee', 'default'].map((tenant) =>
      create(acme, { kind: 'tenant', tenant }).catch((error: Error) => error.message),
    ),
  );
  expect(answers[0]).toBe(answers[1]);
});

test('the status counts what is locked of the tenant that asks', async () => {
  const { lockId } = await create(home, { kind: 'agent', agent: 'analyst' });
  expect(locks.status('default').detail).toMatch(/^1 in force/);
  expect(locks.status('acme').detail).toBe('none in force');
  await locks.lift(home, lockId, 'over');
});

test('a lock on everything is on every tenant', async () => {
  const { lockId } = await create(home, { kind: 'all' });
  expect([await lockOf('acme'), await lockOf('default')]).toEqual([lockId, lockId]);
  expect((await locks.get(acme, lockId)).reach.openTasks).toBe(0);
  await locks.lift(home, lockId, 'over');
});

test('an agent that is an operator too does not free itself, and a wide pattern locks no operator out', async () => {
  const both = operatorOf('default', ['analyst']);
  for (const scope of [
    { kind: 'agent', agent: 'analyst' },
    { kind: 'workload', pattern: 'spiffe://default.test/*' },
  ] as const) {
    const { lockId } = await create(home, scope);
    await expect(locks.lift(both, lockId, 'x')).rejects.toMatchObject({ reason: 'ROLE_REQUIRED' });
    expect((await locks.lift(home, lockId, 'over')).state).toBe('lifted');
  }
});

test('a detector places a lock by the same function, and the same finding again is the same lock', async () => {
  const finding = { tenant: 'acme', scope: { kind: 'agent', agent: 'analyst' } as const, by: 'detector', settle: true };
  const place = (reason: string) => locks.place({ ...finding, reason, requestId: 'canary 1', expiresAt: undefined });
  const [first, second] = [await place('used once'), await place('used again')];
  expect(second).toEqual(first);
  expect(await listed(acme)).toMatchObject([{ lockId: first.lockId, placedBy: 'detector', settle: true }]);
  await locks.lift(acme, first.lockId, 'over');
});
