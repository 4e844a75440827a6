import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { loadConfig } from '../../src/config/load-config.ts';
import { idFactory } from '../../src/domain/ids.ts';
import type { Provider, TargetProvider } from '../../src/domain/provider.ts';
import { createReconciler, type Step } from '../../src/domain/reconciliation.ts';
import { FindingKind } from '../../src/gen/leasehold/v1/settlement_service_pb.js';
import { createPostgresProvider } from '../../src/providers/postgres/provider.ts';
import { installationMark, postgresTargets } from '../../src/root-options.ts';
import { openStorage } from '../../src/storage/storage.ts';
import { runCli } from '../cli/run-cli.ts';
import { asSuperuser } from '../support/postgres.ts';
import {
  brokerRows,
  callers,
  eventually,
  expectSettled,
  logIn,
  loginOf,
  ordersSeenBy,
  refusalOf,
} from '../faults/support.ts';
import { eventsOf, openSite, reconcile, roleIsThere, type Site } from './support.ts';

let site: Site;
let mark: string;
const strange = new Set<string>();
beforeAll(async () => {
  site = await openSite('compare');
  mark = installationMark(loadConfig({ path: site.estate.configFile, env: process.env }));
});
afterEach(async () => {
  await site.network.mode('pass');
  for (const role of strange) await onTarget(`DROP ROLE IF EXISTS ${role}`);
  strange.clear();
});
afterAll(async () => {
  await site?.stop();
});

const hour = 3_600_000;
const onTarget = async (sql: string) => await asSuperuser(site.estate.targetUrl, (client) => client.query(sql));

/** A lease id as this installation, or another, would have made it some time ago. */
function leaseIdFrom(ago: number, of: string | undefined): string {
  return idFactory(() => Date.now() - ago, randomBytes, of)('lse');
}

const roleOf = (leaseId: string) => `lh_${leaseId.slice(4)}`;

/** A login that the broker's own login has made at the target, as an issue would. */
async function madeByBroker(role: string): Promise<void> {
  const { host, port, database, user, password } = site.estate.target;
  const client = new pg.Client({ host, port, database, user, password });
  await client.connect();
  try {
    await client.query(`CREATE ROLE ${role} LOGIN`);
    strange.add(role);
  } finally {
    await client.end();
  }
}

test('where leases and target agree nothing is found and nothing is touched', async () => {
  const { credential } = await site.issue();
  const { findings, results } = await reconcile(site.operator, { settle: true });
  expect(findings).toEqual([]);
  expect(results['warehouse']).toMatchObject({ strays: 0n, missing: 0n, error: '' });
  expect(results['warehouse']!.held).toBeGreaterThan(0n);
  expect(await ordersSeenBy(loginOf(credential))).toBe(3);
});

test('a login whose lease was lost with a restored database is a stray, reported first and revoked on request', async () => {
  const leaseId = leaseIdFrom(hour, mark);
  const role = roleOf(leaseId);
  await madeByBroker(role);
  const looked = await reconcile(site.operator);
  expect(looked.findings).toMatchObject([
    { kind: FindingKind.STRAY_UNKNOWN, handle: `warehouse/${role}`, leaseId, settled: false, error: '' },
  ]);
  expect(looked.results['warehouse']).toMatchObject({ strays: 1n, settled: 0n });
  expect(await roleIsThere(site, role)).toBe(true);
  const settled = await reconcile(site.operator, { settle: true });
  expect(settled.findings).toMatchObject([{ leaseId, settled: true }]);
  expect(settled.results['warehouse']).toMatchObject({ strays: 1n, settled: 1n });
  expect(await roleIsThere(site, role)).toBe(false);
  const by = { actor: 'spiffe://dev.leasehold.test/operator', detail: { target: 'warehouse', why: 'unknown' } };
  for (const kind of ['stray.found', 'stray.revoked']) expect(await eventsOf(site, leaseId, kind)).toMatchObject([by]);
  expect((await reconcile(site.operator)).findings).toEqual([]);
});

test('after a restore of our database, logins that were issued since lose their sessions too', async () => {
  const { credential, lease, taskId } = await site.issue();
  const session = await logIn(loginOf(credential));
  // What a restore does: everything about the task is as if it had never been.
  for (const table of ['audit_events', 'leases', 'tasks']) {
    await brokerRows(site.estate, `DELETE FROM ${table} WHERE task_id = $1`, [taskId]);
  }
  // The broker that was restored finds it some time later.
  const found = await laterBy(hour, (later) => later.settle());
  expect(found).toMatchObject([{ kind: 'stray_unknown', leaseId: lease.leaseId, settled: true }]);
  await expect(session.query('SELECT 1')).rejects.toThrow();
  await expect(ordersSeenBy(loginOf(credential))).rejects.toThrow();
});

test('after a restore of the target, logins of settled leases are back: strays of their own lease and task', async () => {
  const { credential, lease, taskId } = await site.issue();
  await callers(site.estate).orchestrator.closeTask({ taskId });
  await expectSettled(site.estate, taskId);
  const role = loginOf(credential).username;
  await madeByBroker(role);
  const { findings } = await reconcile(site.operator, { settle: true });
  expect(findings).toMatchObject([{ kind: FindingKind.STRAY_SETTLED, leaseId: lease.leaseId, taskId, settled: true }]);
  expect(await roleIsThere(site, role)).toBe(false);
  expect(await eventsOf(site, lease.leaseId, 'stray.revoked')).toMatchObject([{ task_id: taskId }]);
});

test('an active lease whose login is gone is missing, and ends with its task', async () => {
  const { credential, lease, taskId } = await site.issue();
  await brokerRows(site.estate, `UPDATE leases SET issued_at = now() - interval '5 minutes' WHERE lease_id = $1`, [
    lease.leaseId,
  ]);
  await onTarget(`DROP OWNED BY ${loginOf(credential).username}; DROP ROLE ${loginOf(credential).username}`);
  const { findings, results } = await reconcile(site.operator, { settle: true });
  expect(findings).toMatchObject([{ kind: FindingKind.MISSING, leaseId: lease.leaseId, taskId, settled: false }]);
  expect(results['warehouse']).toMatchObject({ missing: 1n, strays: 0n });
  await callers(site.estate).orchestrator.closeTask({ taskId });
  await expectSettled(site.estate, taskId);
});

test('what is young, being issued, of another installation, or of nobody known is left alone', async () => {
  const { taskId } = await site.issue();
  const pending = leaseIdFrom(hour, mark);
  await brokerRows(
    site.estate,
    `INSERT INTO leases (tenant, task_id, lease_id, request_id, agent, workload, tool, tier, provider, handle, state,
       revocation_kind, issued_at, expires_at, settle_at, line_started_at, policy_revision, policy_rule)
     SELECT tenant, task_id, $2, gen_random_uuid()::text, agent, workload, tool, tier, provider, 'warehouse/' || $3::text,
       'pending', revocation_kind, issued_at, expires_at, expires_at, line_started_at, policy_revision, policy_rule
     FROM leases WHERE task_id = $1`,
    [taskId, pending, roleOf(pending)],
  );
  const young = leaseIdFrom(60_000, mark);
  const unmarked = leaseIdFrom(hour, undefined);
  const neighbour = leaseIdFrom(hour, 'ffffff');
  for (const leaseId of [pending, young, unmarked, neighbour]) await madeByBroker(roleOf(leaseId));
  const stranger = roleOf(leaseIdFrom(hour, undefined));
  await onTarget(`CREATE ROLE ${stranger} LOGIN`);
  strange.add(stranger);
  const { findings, results } = await reconcile(site.operator, { settle: true });
  expect(findings).toEqual([]);
  expect(results['warehouse']).toMatchObject({ strays: 0n, young: 1n, missing: 0n });
  expect(results['warehouse']!.unmarked).toBeGreaterThanOrEqual(3n);
  for (const role of [...[pending, young, unmarked, neighbour].map(roleOf), stranger]) {
    expect(await roleIsThere(site, role)).toBe(true);
  }
  await callers(site.estate).orchestrator.closeTask({ taskId });
  await brokerRows(site.estate, 'UPDATE leases SET settle_at = now() WHERE lease_id = $1', [pending]);
  await expectSettled(site.estate, taskId);
});

test('a target that cannot be reached says so, and one that is unknown is refused with the names that there are', async () => {
  await site.network.mode('refuse');
  const { results } = await reconcile(site.operator);
  expect(results['warehouse']!.error).toContain('target warehouse');
  expect(results['warehouse']!.error).not.toContain(site.estate.target.password);
  await site.network.mode('pass');
  // Where another kind has targets of the same name, a prefix tells them apart.
  expect((await reconcile(site.operator, { target: 'warehouse' })).results).toHaveProperty('warehouse');
  expect(await refusalOf(reconcile(site.operator, { target: 'vault:warehouse' }))).toMatchObject({
    reason: 'NAME_UNKNOWN',
  });
  expect(await refusalOf(reconcile(site.operator, { target: 'basement' }))).toMatchObject({
    reason: 'NAME_UNKNOWN',
    message: expect.stringContaining('warehouse') as string,
  });
  // The claim was given back.
  expect((await reconcile(site.operator)).results['warehouse']!.error).toBe('');
});

test('a stray that cannot be revoked is reported as such, and the next comparison takes it', async () => {
  const leaseId = leaseIdFrom(hour, mark);
  // Made by a superuser: the broker's login may not drop it.
  await onTarget(`CREATE ROLE ${roleOf(leaseId)} LOGIN`);
  strange.add(roleOf(leaseId));
  const first = await reconcile(site.operator, { settle: true });
  expect(first.findings).toMatchObject([{ leaseId, settled: false }]);
  expect(first.findings[0]!.error).not.toBe('');
  expect(await eventsOf(site, leaseId, 'stray.failed')).toHaveLength(1);
  await onTarget(`GRANT ${roleOf(leaseId)} TO ${site.estate.target.user} WITH ADMIN TRUE`);
  expect((await reconcile(site.operator, { settle: true })).findings).toMatchObject([{ leaseId, settled: true }]);
  expect(await roleIsThere(site, roleOf(leaseId))).toBe(false);
});

/** The same parts as a broker has, an hour later: leases and logins of now are then old enough to be judged. */
async function laterBy<T>(
  ms: number,
  work: (later: {
    store: Awaited<ReturnType<typeof openStorage>>;
    reconciler: ReturnType<typeof createReconciler>;
    provider: TargetProvider;
    settle: () => Promise<object[]>;
  }) => Promise<T>,
  change: { wrap?: (provider: TargetProvider) => TargetProvider; periodic?: { every: number; settle: boolean } } = {},
): Promise<T> {
  const config = loadConfig({ path: site.estate.configFile, env: process.env });
  const store = await openStorage({ url: site.estate.brokerUrl, poolSize: 4, onError: () => undefined });
  const made = createPostgresProvider({ targets: postgresTargets(config.targets), random: randomBytes, mark });
  const provider = change.wrap?.(made) ?? made;
  const reconciler = createReconciler({
    clock: { now: () => Date.now() + ms },
    providers: new Map<string, Provider>([['postgres', provider]]),
    store: store.reconciliation,
    tenantOf: () => 'default',
    revokeTimeout: 10_000,
    periodic: change.periodic,
    newRequestId: () => crypto.randomUUID(),
    emit: () => undefined,
  });
  const settle = async () => {
    const findings: object[] = [];
    const request = { tenant: 'default', actor: 'test', requestId: crypto.randomUUID(), target: '', settle: true };
    for await (const step of reconciler.run(request, AbortSignal.timeout(50_000))) {
      if (step.step === 'finding') findings.push(step.finding);
    }
    return findings;
  };
  try {
    return await work({ store, reconciler, provider, settle });
  } finally {
    await made.close();
    await store.close();
  }
}

test('thousands are compared page by page, and all strays among them are found', { timeout: 120_000 }, async () => {
  const many = Array.from({ length: 1_201 }, () => leaseIdFrom(hour, mark));
  await onTarget(many.map((leaseId) => `CREATE ROLE ${roleOf(leaseId)}`).join(';'));
  for (const leaseId of many) strange.add(roleOf(leaseId));
  let largest = 0;
  const wrap = (provider: TargetProvider): TargetProvider => ({
    ...provider,
    inventory: {
      ...provider.inventory!,
      list: async (...args) => {
        const page = await provider.inventory!.list(...args);
        largest = Math.max(largest, page.held.length);
        return page;
      },
    },
  });
  const found = await laterBy(
    0,
    async ({ reconciler }) => {
      const ids = new Set<string | undefined>();
      const request = { tenant: 'default', actor: 'test', requestId: crypto.randomUUID(), target: '', settle: false };
      for await (const step of reconciler.run(request, AbortSignal.timeout(60_000))) {
        if (step.step === 'finding') ids.add(step.finding.leaseId);
      }
      return ids;
    },
    { wrap },
  );
  expect(many.filter((leaseId) => !found.has(leaseId))).toEqual([]);
  expect(largest).toBeLessThanOrEqual(500);
  await onTarget([...strange].map((role) => `DROP ROLE IF EXISTS ${role}`).join(';'));
  strange.clear();
});

test('one comparison of a target runs at a time; one that is left behind by a dead replica runs out', async () => {
  await laterBy(0, async ({ store, reconciler }) => {
    const key = { tenant: 'default', provider: 'postgres', target: 'warehouse' };
    const now = Date.now();
    expect(await store.reconciliation.begin(key, 'ann 1', now, now + 60_000)).toBeUndefined();
    const { results } = await reconcile(site.operator);
    expect(results['warehouse']!.error).toMatch(/IN_PROGRESS: ann compares/);
    const steps: Step[] = [];
    await brokerRows(site.estate, `UPDATE leasehold.reconciliations SET claimed_until = now() - interval '1 second'`);
    const request = { tenant: 'default', actor: 'bob', requestId: '2', target: 'warehouse', settle: false };
    for await (const step of reconciler.run(request, AbortSignal.timeout(30_000))) steps.push(step);
    expect(steps.at(-1)).toMatchObject({ step: 'result', result: { error: undefined } });
    // Ann's replica comes back to life: it has lost the target and cannot put its word over Bob's.
    expect(await store.reconciliation.extend(key, 'ann 1', now + 60_000)).toBe(false);
  });
});

test('the periodic comparison runs once an interval, on one replica, and settles only if it is told to', async () => {
  const leaseId = leaseIdFrom(hour, mark);
  await madeByBroker(roleOf(leaseId));
  const finished = async () =>
    (await brokerRows(site.estate, 'SELECT finished_at, strays FROM leasehold.reconciliations'))[0]!;
  await reconcile(site.operator);
  const { finished_at: before } = await finished();
  const tick = async (later: number, settle: boolean) =>
    await laterBy(
      later,
      async ({ reconciler }) => {
        await Promise.all([reconciler.tick(AbortSignal.timeout(30_000)), reconciler.tick(AbortSignal.timeout(30_000))]);
      },
      { periodic: { every: hour, settle } },
    );
  await tick(hour / 2, false);
  expect((await finished())['finished_at']).toEqual(before);
  await tick(hour + 60_000, false);
  expect((await finished())['finished_at']).not.toEqual(before);
  expect((await finished())['strays']).toBeGreaterThanOrEqual(1);
  expect(await roleIsThere(site, roleOf(leaseId))).toBe(true);
  await tick(3 * hour, true);
  expect(await roleIsThere(site, roleOf(leaseId))).toBe(false);
  expect(await eventsOf(site, leaseId, 'stray.revoked')).toMatchObject([{ actor: 'broker' }]);
  await brokerRows(site.estate, 'UPDATE leasehold.reconciliations SET finished_at = now()');
});

test('logins of other targets in the same cluster are known by their lease, not by their handle', async () => {
  const { credential } = await site.issue();
  const role = loginOf(credential).username;
  const wrap = (provider: TargetProvider): TargetProvider => ({
    ...provider,
    inventory: {
      ...provider.inventory!,
      targets: () => ['annex'],
      list: async (_target, ...rest) => {
        const page = await provider.inventory!.list('warehouse', ...rest);
        return {
          ...page,
          held: page.held.map((each) => ({ ...each, handle: each.handle.replace('warehouse/', 'annex/') })),
        };
      },
    },
  });
  const found = await laterBy(hour / 2, (later) => later.settle(), { wrap });
  expect(found).toEqual([]);
  expect(await roleIsThere(site, role)).toBe(true);
  await eventually(async () => expect(await ordersSeenBy(loginOf(credential))).toBe(3));
});

test('the program compares, settles and looks at leases through a real broker, without target credentials', async () => {
  const leaseId = leaseIdFrom(hour, mark);
  await madeByBroker(roleOf(leaseId));
  const { lease } = await site.issue();
  const env = { LEASEHOLD_SERVER: site.estate.httpUrl, LEASEHOLD_TOKEN: await site.estate.mint('operator') };
  const looked = await runCli(['reconcile'], env);
  expect(looked.code).toBe(13);
  expect(looked.stdout).toContain(`warehouse/${roleOf(leaseId)}  stray (its lease is not known here), made 1h`);
  const settled = await runCli(['reconcile', '--target', 'warehouse', '--settle', '--json'], env);
  expect(settled.code).toBe(0);
  expect(await roleIsThere(site, roleOf(leaseId))).toBe(false);
  const got = await runCli(['lease', 'get', lease.leaseId], env);
  expect(got.stdout).toMatch(/^target +warehouse$/m);
  expect(await runCli(['lease', 'settle', '--troubled'], env)).toMatchObject({
    code: 0,
    stdout: 'no leases in trouble\n',
  });
  const refused = await runCli(['lease', 'abandon', lease.leaseId, '--reason', 'it is in the way of a test'], env);
  expect(refused.code).toBe(6);
  expect(refused.stderr).toContain('ABANDON_REFUSED');
});
