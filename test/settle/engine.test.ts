import { afterEach, beforeEach, expect, test } from 'vitest';
import { auditEvent } from '../../src/domain/audit.ts';
import type { Lease, Task } from '../../src/domain/model.ts';
import { targetOf, type TargetProvider } from '../../src/domain/provider.ts';
import { createSettler } from '../../src/domain/settlement.ts';
import { leaseOf, storageFor, rows, taskOf, writeOf } from '../support/storage.ts';

/** The engine on the real storage, with targets that behave as a test says and a clock that a test moves. */

const { database, storage } = await storageFor('engine');

let now = 0;
beforeEach(() => {
  now = Date.now();
});
const settlers: { stop(): Promise<void> }[] = [];
afterEach(async () => {
  releaseAll();
  await Promise.all(settlers.splice(0).map((settler) => settler.stop()));
  await rows(
    database.url,
    `UPDATE leases SET state = 'settled', outcome = 'expired' WHERE outcome IS DISTINCT FROM 'expired'`,
  );
});

let releaseAll: () => void = () => undefined;

interface Target {
  /** What a revocation there does now. */
  does: 'succeed' | 'fail' | 'hang';
  /** Handles that cannot be revoked whatever the others do. */
  stuck: Set<string>;
  /** Handles whose revocation hangs whatever the others do. */
  hung: Set<string>;
  attempts: string[];
  underWay: number;
  most: number;
}

function makeTargets() {
  const targets = new Map<string, Target>();
  const held = new Set<() => void>();
  releaseAll = () => held.forEach((release) => release());
  const target = (name: string): Target => {
    let found = targets.get(name);
    if (found === undefined) {
      found = { does: 'succeed', stuck: new Set(), hung: new Set(), attempts: [], underWay: 0, most: 0 };
      targets.set(name, found);
    }
    return found;
  };
  const provider = {
    selfContained: false,
    kind: 'scripted',
    issueTimeout: 1_000,
    revoke: async (handle: string) => {
      const at = target(targetOf(handle));
      at.attempts.push(handle);
      at.underWay += 1;
      at.most = Math.max(at.most, at.underWay);
      try {
        await new Promise<void>((resolve) => setImmediate(resolve));
        if (at.does === 'hang' || at.hung.has(handle)) await new Promise<void>((resolve) => held.add(resolve));
        if (at.does === 'fail' || at.stuck.has(handle)) throw new Error('it does not let go');
      } finally {
        at.underWay -= 1;
      }
    },
  } as unknown as TargetProvider;
  return { target, provider };
}

function engine(provider: TargetProvider, change: { concurrency?: number; random?: () => number } = {}) {
  const told: string[] = [];
  const settler = createSettler({
    clock: { now: () => now },
    store: storage.settlement,
    providers: new Map([['scripted', provider]]),
    concurrency: change.concurrency ?? 16,
    revokeTimeout: 10_000,
    patience: 200,
    settleBound: 30_000,
    severalTenants: true,
    giveUpAfter: 24 * 3_600_000,
    random: change.random ?? (() => 0.5),
    sleep: (ms, signal) =>
      new Promise((resolve) => {
        const timer = setTimeout(resolve, ms);
        signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true });
      }),
    reached: () => undefined,
    emit: (name) => told.push(name),
  });
  settlers.push(settler);
  return { ...settler, told };
}

async function closedTask(target: string, count: number, expiresAt?: number): Promise<{ task: Task; leases: Lease[] }> {
  const { task } = (await storage.tasks.insert(taskOf(), [])) as { task: Task };
  const leases = Array.from({ length: count }, (_, n) =>
    leaseOf(task, { provider: 'scripted', handle: `${target}/${task.taskId}-${n}` }),
  );
  for (let from = 0; from < count; from += 1_000) {
    await Promise.all(leases.slice(from, from + 1_000).map((lease) => storage.writer.insert(writeOf(task, lease))));
  }
  const event = auditEvent(task, 'task.closed', 'test', now, {});
  await storage.tasks.close(task.tenant, task.taskId, 'requested', now, event);
  if (expiresAt !== undefined) {
    await rows(database.url, 'UPDATE leases SET expires_at = $2 WHERE task_id = $1', [
      task.taskId,
      new Date(expiresAt),
    ]);
  }
  return { task, leases };
}

async function unsettled(task: Task): Promise<number> {
  return (await storage.leases.summary(task.tenant, task.taskId)).unsettled;
}

const leaseNow = async (lease: Lease) => (await storage.leases.get(lease.tenant, lease.leaseId))!;

test(
  'thousands that are due in one second are settled once each, a few at a time, by two replicas',
  { timeout: 60_000 },
  async () => {
    const { target, provider } = makeTargets();
    const { task } = await closedTask('rush', 3_000);
    const replicas = [engine(provider), engine(provider)];
    await expect
      .poll(async () => (await Promise.all(replicas.map((replica) => replica.tick())), await unsettled(task)), {
        timeout: 50_000,
      })
      .toBe(0);
    expect(new Set(target('rush').attempts).size).toBe(3_000);
    expect(target('rush').attempts).toHaveLength(3_000);
    expect(target('rush').most).toBeLessThanOrEqual(32);
    await replicas[0]!.tick();
    expect((await storage.tasks.get(task.tenant, task.taskId))?.state).toBe('closed');
    const events = await rows(database.url, `SELECT FROM audit_events WHERE task_id = $1 AND kind = 'lease.settled'`, [
      task.taskId,
    ]);
    expect(events).toHaveLength(3_000);
  },
);

test('a target that hangs, with hundreds waiting before it, holds up no other', async () => {
  const { target, provider } = makeTargets();
  target('hung').does = 'hang';
  const waiting = await closedTask('hung', 300);
  now += 1;
  const quick = await closedTask('quick', 40);
  const settler = engine(provider);
  await settler.tick();
  await expect.poll(async () => await unsettled(quick.task)).toBe(0);
  expect(await unsettled(waiting.task)).toBe(300);
  // What hangs is as much as is allowed, and later rounds add nothing.
  await settler.tick();
  expect(target('hung').attempts).toHaveLength(16);
});

test('a credential whose revocation hangs holds up none that become due at its target later', async () => {
  const { target, provider } = makeTargets();
  const first = await closedTask('partly', 1);
  target('partly').hung.add(first.leases[0]!.handle);
  const settler = engine(provider);
  await settler.tick();
  now += 1;
  const later = await closedTask('partly', 40);
  await settler.tick();
  await expect.poll(async () => await unsettled(later.task)).toBe(0);
  expect(await unsettled(first.task)).toBe(1);
  expect(target('partly').attempts).toHaveLength(41);
});

test('a target that fails gets one attempt per rest, and all of its leases once it is back', async () => {
  const { target, provider } = makeTargets();
  const down = target('down');
  down.does = 'fail';
  const { task } = await closedTask('down', 100);
  const settler = engine(provider);
  await settler.tick();
  const first = down.attempts.length;
  expect(first).toBeLessThanOrEqual(16);
  expect(settler.told.filter((name) => name === 'target.failing')).toHaveLength(1);
  await settler.tick();
  expect(down.attempts).toHaveLength(first);
  for (let probe = 1; probe <= 5; probe += 1) {
    now += 8_000;
    await settler.tick();
    expect(down.attempts).toHaveLength(first + probe);
  }
  down.does = 'succeed';
  now += 8_000;
  await settler.tick();
  now += 60_000;
  await settler.tick();
  await expect.poll(async () => await unsettled(task)).toBe(0);
  expect(settler.told.filter((name) => name === 'target.recovered')).toHaveLength(1);
  expect(down.most).toBeLessThanOrEqual(16);
});

test('a return at a target that is failing is left to the next probe, so that its caller does not wait', async () => {
  const { target, provider } = makeTargets();
  target('away').does = 'fail';
  await closedTask('away', 3);
  const settler = engine(provider);
  await settler.tick();
  const { leases } = await closedTask('away', 1);
  const [claimed] = await storage.settlement.claim(['scripted'], now, 15_000, 1, []);
  expect(claimed!.leaseId).toBe(leases[0]!.leaseId);
  const before = target('away').attempts.length;
  await settler.settleNow(claimed!);
  expect(target('away').attempts).toHaveLength(before);
  target('away').does = 'succeed';
  now += 60_000;
  await settler.tick();
  await expect.poll(async () => (await leaseNow(leases[0]!)).outcome).toBe('revoked');
});

test('one credential that cannot be revoked does not hold up the others of its target', async () => {
  const { target, provider } = makeTargets();
  const bad = await closedTask('mixed', 1);
  target('mixed').stuck.add(bad.leases[0]!.handle);
  const settler = engine(provider);
  for (let round = 0; round < 6; round += 1) {
    await settler.tick();
    now += 40_000;
    const good = await closedTask('mixed', 5);
    await settler.tick();
    now += 8_000;
    await settler.tick();
    await expect.poll(async () => await unsettled(good.task)).toBe(0);
  }
  expect(await unsettled(bad.task)).toBe(1);
});

test('the pauses between attempts at one lease grow to half a minute, spread, and no further', async () => {
  const { target, provider } = makeTargets();
  target('slow').does = 'fail';
  const { leases } = await closedTask('slow', 1);
  for (const random of [0, 1]) {
    const settler = engine(provider, { random: () => random });
    const pauses: number[] = [];
    await rows(database.url, 'UPDATE leases SET settle_attempts = 0, settle_at = $2 WHERE lease_id = $1', [
      leases[0]!.leaseId,
      new Date(now),
    ]);
    for (let attempt = 0; attempt < 9; attempt += 1) {
      await settler.tick();
      const { settleAt, settleAttempts } = await leaseNow(leases[0]!);
      expect(settleAttempts).toBe(attempt + 1);
      pauses.push(settleAt! - now);
      now = settleAt! + 8_000;
    }
    const scale = 0.5 + random;
    expect(pauses).toEqual([1, 2, 4, 8, 16, 30, 30, 30, 30].map((seconds) => seconds * 1_000 * scale));
  }
});

test('a lease is irrevocable a day after its credential has run out, not before, and is then tried ever more slowly', async () => {
  const { target, provider } = makeTargets();
  target('gone').does = 'fail';
  const hour = 3_600_000;
  const { task, leases } = await closedTask('gone', 1, now - 23 * hour);
  const settler = engine(provider);
  await settler.tick();
  expect(await leaseNow(leases[0]!)).toMatchObject({ state: 'settling', outcome: undefined });
  now += 2 * hour;
  await settler.tick();
  expect(await leaseNow(leases[0]!)).toMatchObject({
    state: 'settled',
    outcome: 'irrevocable',
    settleError: 'it does not let go',
  });
  await settler.tick();
  expect((await storage.tasks.get(task.tenant, task.taskId))?.state).toBe('close_degraded');
  const pauses: number[] = [];
  for (let attempt = 0; attempt < 20; attempt += 1) {
    const { settleAt } = await leaseNow(leases[0]!);
    pauses.push(Math.round((settleAt! - now) / hour));
    now = settleAt! + 10_000;
    await settler.tick();
  }
  expect(pauses[0]).toBe(1);
  expect(Math.max(...pauses)).toBeLessThanOrEqual(24);
  expect(pauses.at(-1)!).toBeGreaterThan(pauses[0]!);
  expect(
    await rows(database.url, `SELECT FROM audit_events WHERE lease_id = $1 AND kind = 'lease.settled'`, [
      leases[0]!.leaseId,
    ]),
  ).toHaveLength(1);

  target('gone').does = 'succeed';
  now = (await leaseNow(leases[0]!)).settleAt! + 10_000;
  await settler.tick();
  await expect.poll(async () => (await leaseNow(leases[0]!)).outcome).toBe('expired');
  expect((await storage.tasks.get(task.tenant, task.taskId))?.state).toBe('closed');
  expect(settler.told).toContain('lease.corrected');
});

test('a correction mends those above as well, once nothing below them is irrevocable', async () => {
  const { target, provider } = makeTargets();
  target('tree').does = 'fail';
  const expiresAt = now - 25 * 3_600_000;
  const make = async (parent?: Task) => {
    const above = parent === undefined ? {} : { parentTaskId: parent.taskId, rootTaskId: parent.rootTaskId };
    return ((await storage.tasks.insert(taskOf(above), [])) as { task: Task }).task;
  };
  const root = await make();
  const children = [await make(root), await make(root)];
  const leases = children.map((child) => leaseOf(child, { provider: 'scripted', handle: `tree/${child.taskId}` }));
  for (const [n, lease] of leases.entries()) await storage.writer.insert(writeOf(children[n]!, lease));
  await storage.tasks.close(
    root.tenant,
    root.taskId,
    'requested',
    now,
    auditEvent(root, 'task.closed', 'test', now, {}),
  );
  await rows(database.url, 'UPDATE leases SET expires_at = $1 WHERE lease_id = ANY($2)', [
    new Date(expiresAt),
    leases.map(({ leaseId }) => leaseId),
  ]);
  const settler = engine(provider);
  const stateOf = async (task: Task) => (await storage.tasks.get(task.tenant, task.taskId))?.state;
  await settler.tick();
  while (await settler.tick());
  expect(await Promise.all([root, ...children].map(stateOf))).toEqual([
    'close_degraded',
    'close_degraded',
    'close_degraded',
  ]);
  target('tree').does = 'succeed';
  for (const [n, lease] of leases.entries()) {
    await rows(database.url, 'UPDATE leases SET settle_at = $1 WHERE lease_id = $2', [new Date(now), lease.leaseId]);
    now += 10_000;
    await settler.tick();
    await expect.poll(() => stateOf(children[n]!)).toBe('closed');
    expect(await stateOf(root)).toBe(n === 0 ? 'close_degraded' : 'closed');
  }
});
