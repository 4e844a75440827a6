import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ChangeKind, PolicyService, RevisionSource } from '../../src/gen/leasehold/v1/policy_service_pb.js';
import { startInProcess, startProcess, type BrokerProcess } from '../support/broker.ts';
import { held, openTask, parties, refusal, reportsRead, sql, warehouseRead, type Parties } from '../e2e/support.ts';
import { databaseEstate, edited, operator, replicaConfig, type PolicyText } from './support.ts';

let estate: Awaited<ReturnType<typeof databaseEstate>>;
let broker: Awaited<ReturnType<typeof startInProcess>>;
let replica: BrokerProcess;
let replicaPort: number;
let here: Parties;
let there: Parties;
let policy: ReturnType<typeof operator>;
let files: PolicyText[];

beforeAll(async () => {
  estate = await databaseEstate('revisions');
  files = await estate.files();
  broker = await startInProcess(estate);
  const other = await replicaConfig(estate);
  replicaPort = other.httpPort;
  replica = await startProcess(estate, { configFile: other.configFile });
  here = parties(estate);
  there = parties(estate, replicaPort);
  policy = operator(estate);
});
afterAll(async () => {
  await replica?.stop();
  await broker?.stop(500);
  await estate?.remove();
});

const withoutReports = () =>
  edited(files, 'analyst.yaml', (text) => text.replace('tools: [reports, warehouse]', 'tools: [warehouse]'));

async function runsEverywhere(digest: string): Promise<void> {
  expect((await here.admin.getStatus({})).policyRevision).toBe(digest);
  await expect
    .poll(async () => (await there.admin.getStatus({})).policyRevision, { timeout: 10_000, interval: 20 })
    .toBe(digest);
}

test('a broker to which no policy was applied denies everything and says how to apply one', async () => {
  const status = await here.admin.getStatus({});
  expect(status.ready).toBe(false);
  expect(status.components.find(({ name }) => name === 'policy')).toMatchObject({
    ready: false,
    detail: expect.stringContaining('leasehold policy apply') as string,
  });
  expect(await refusal(openTask(here, [reportsRead]))).toMatchObject({ reason: 'NAME_UNKNOWN' });
});

test('a dry run says what would change and changes nothing', async () => {
  const answer = await policy.applyPolicy({ files, dryRun: true });
  expect(answer.activated).toBe(false);
  expect(answer.changes.every(({ change }) => change === ChangeKind.ADDED)).toBe(true);
  expect(answer.changes.map(({ kind, name, rule }) => [kind, name, rule].join('/'))).toContain('Policy/analyst/read');
  expect(await sql(estate.databaseUrl, 'SELECT 1 FROM leasehold.policy_revisions')).toEqual([]);
  expect(await sql(estate.databaseUrl, 'SELECT 1 FROM leasehold.policy_activations')).toEqual([]);
});

test('an applied policy runs on every replica, and says who applied it and why', async () => {
  const { revision, activated } = await policy.applyPolicy({ files, message: 'the first' });
  expect(activated).toBe(true);
  expect(revision).toMatchObject({
    creator: 'spiffe://dev.leasehold.test/operator',
    source: RevisionSource.API,
    message: 'the first',
    active: true,
  });
  await runsEverywhere(revision!.digest);
  expect((await there.admin.getStatus({})).ready).toBe(true);
  const { taskId } = await openTask(there, [reportsRead]);
  expect(held(await there.agent.issueCredential({ taskId, ...reportsRead })).lease.policyRevision).toBe(
    revision!.digest,
  );
});

test('replicas converge within a second of the answer', async () => {
  const before = (await policy.getRevision({})).revision!.digest;
  const { revision } = await policy.applyPolicy({ files: withoutReports(), message: 'no reports' });
  const [{ activated_at: at }] = (await sql(
    estate.databaseUrl,
    'SELECT activated_at FROM leasehold.policy_activations ORDER BY activation_id DESC LIMIT 1',
  )) as [{ activated_at: Date }];
  await runsEverywhere(revision!.digest);
  // Ground truth is the replica's own log: when it began to run the revision.
  const line = replica
    .log()
    .split('\n')
    .findLast((entry) => entry.includes('policy.loaded') && entry.includes(revision!.digest))!;
  const { time } = JSON.parse(line) as { time: string };
  expect(Date.parse(time) - at.getTime()).toBeLessThan(1_000);
  const { taskId } = await openTask(there, [reportsRead]);
  expect(await refusal(there.agent.issueCredential({ taskId, ...reportsRead }))).toMatchObject({
    reason: 'POLICY_DENIED',
  });
  await policy.rollbackPolicy({ digest: before.slice(0, 20), message: 'reports are needed' });
  await runsEverywhere(before);
  expect(held(await there.agent.issueCredential({ taskId, ...reportsRead })).lease.policyRevision).toBe(before);
});

describe('a change of policy', () => {
  test('that is no policy is refused with file, line and column of each mistake', async () => {
    const broken = edited(files, 'analyst.yaml', (text) =>
      text.replace('tools: [reports, warehouse]', 'tools: [reprots]'),
    );
    const before = (await policy.getRevision({})).revision!.digest;
    for (const dryRun of [true, false]) {
      const refused = await refusal(policy.applyPolicy({ files: broken, dryRun }));
      expect(refused).toMatchObject({ code: 'InvalidArgument', reason: 'POLICY_INVALID' });
      expect(refused.fields[0]).toMatch(/^analyst\.yaml:\d+:\d+$/);
      expect(refused.message).toContain('there is no tool "reprots"');
    }
    expect((await policy.getRevision({})).revision!.digest).toBe(before);
  });

  test('is made once however often it is sent', async () => {
    const requestId = randomUUID();
    const send = () => policy.applyPolicy({ requestId, files: withoutReports() });
    const answers = await Promise.all([send(), send(), send()]);
    expect(new Set(answers.map(({ revision }) => revision!.digest)).size).toBe(1);
    const rows = await sql(estate.databaseUrl, 'SELECT 1 FROM leasehold.policy_activations WHERE request_id = $1', [
      requestId,
    ]);
    expect(rows).toHaveLength(1);
    expect(await refusal(policy.applyPolicy({ requestId, files }))).toMatchObject({ reason: 'REQUEST_ID_REUSED' });
    await policy.applyPolicy({ files });
  });

  test('on top of one that nobody had seen is refused', async () => {
    const seen = (await policy.getRevision({})).revision!.digest;
    const both = await Promise.allSettled([
      policy.applyPolicy({ files: withoutReports(), expectedRevision: seen }),
      policy.applyPolicy({
        files: edited(files, 'analyst.yaml', (text) => text.replace('ttl: 10m', 'ttl: 9m')),
        expectedRevision: seen,
      }),
    ]);
    expect(both.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
    const lost = both.find((one) => one.status === 'rejected')!;
    expect(await refusal(Promise.reject(lost.reason as Error))).toMatchObject({ reason: 'POLICY_CHANGED' });
    await policy.applyPolicy({ files });
  });

  test('is for operators alone, and they alone and auditors see revisions', async () => {
    for (const workload of ['orchestrator', 'agent/analyst', 'auditor']) {
      const other = estate.client(PolicyService, workload);
      expect(await refusal(other.applyPolicy({ files }))).toMatchObject({ reason: 'ROLE_REQUIRED' });
    }
    expect(await refusal(estate.client(PolicyService, 'agent/analyst').getRevision({}))).toMatchObject({
      reason: 'ROLE_REQUIRED',
    });
    const auditor = estate.client(PolicyService, 'auditor');
    expect((await auditor.listActivations({})).activations.length).toBeGreaterThan(2);
  });
});

test('two revisions differ rule by rule and field by field', async () => {
  const { revision: before } = await policy.applyPolicy({ files });
  const { revision: after } = await policy.applyPolicy({
    files: edited(files, 'analyst.yaml', (text) =>
      text.replace('ttl: 10m', 'ttl: 9m').replace('write-needs-change-ticket', 'write-needs-ticket'),
    ),
  });
  const { changes } = await policy.diffRevisions({ from: before!.digest, to: after!.digest });
  expect(changes.map(({ name, rule, change }) => [name, rule, change])).toEqual([
    ['analyst', 'read', ChangeKind.CHANGED],
    ['analyst', 'write-needs-change-ticket', ChangeKind.REMOVED],
    ['analyst', 'write-needs-ticket', ChangeKind.ADDED],
  ]);
  expect(changes[0]!.fields).toMatchObject([{ path: 'obligations.ttl', before: '"10m"', after: '"9m"' }]);
  await policy.applyPolicy({ files });
});

test('the database keeps revisions and history as they were written', async () => {
  const { rolname } = (
    await sql(estate.databaseUrl, `SELECT rolname FROM pg_roles WHERE rolname = $1`, ['leasehold_broker'])
  )[0] as { rolname: string };
  const granted = await sql(
    estate.databaseUrl,
    `SELECT table_name, string_agg(privilege_type, ',' ORDER BY privilege_type) AS may
     FROM information_schema.role_table_grants
     WHERE grantee = $1 AND table_name IN ('policy_revisions', 'policy_activations') GROUP BY table_name ORDER BY 1`,
    [rolname],
  );
  expect(granted).toEqual([
    { table_name: 'policy_activations', may: 'INSERT,SELECT' },
    { table_name: 'policy_revisions', may: 'INSERT,SELECT' },
  ]);
});

describe('with reevaluate', () => {
  test('open leases that the revision no longer allows are settled at once, the others live', async () => {
    await policy.applyPolicy({ files });
    const { taskId } = await openTask(here, [reportsRead, warehouseRead]);
    const reports = held(await here.agent.issueCredential({ taskId, ...reportsRead })).lease;
    const login = held(await here.agent.issueCredential({ taskId, ...warehouseRead })).lease;
    const preview = await policy.applyPolicy({ files: withoutReports(), dryRun: true, reevaluate: true });
    expect(preview.wouldEnd).toBeGreaterThanOrEqual(1n);

    await policy.applyPolicy({ files: withoutReports(), reevaluate: true });
    const lease = async (leaseId: string) =>
      (await sql(estate.databaseUrl, 'SELECT * FROM leasehold.leases WHERE lease_id = $1', [leaseId]))[0];
    await expect
      .poll(async () => await lease(reports.leaseId), { timeout: 10_000 })
      .toMatchObject({ state: 'settled', outcome: 'revoked', settle_cause: 'policy' });
    expect(await lease(login.leaseId)).toMatchObject({ state: 'active', settle_cause: null });

    // Followers of the feed refuse the token, and the audit names the decision.
    expect(
      await sql(estate.databaseUrl, 'SELECT 1 FROM leasehold.revocations WHERE lease_id = $1', [reports.leaseId]),
    ).toHaveLength(1);
    const events = await sql(
      estate.databaseUrl,
      `SELECT kind, actor, detail FROM leasehold.audit_events WHERE lease_id = $1 AND actor = 'broker' ORDER BY event_id`,
      [reports.leaseId],
    );
    expect(events).toMatchObject([
      { kind: 'decision.made', detail: { effect: 'deny', reevaluation: true } },
      { kind: 'lease.settled', detail: { cause: 'policy' } },
    ]);
    expect(await refusal(here.agent.renewCredential({ leaseId: reports.leaseId }))).toMatchObject({
      reason: 'LEASE_ENDED',
    });
    const [newest] = (await policy.listActivations({})).activations;
    expect(newest!.reevaluation!.ended).toBeGreaterThanOrEqual(1n);
    await policy.applyPolicy({ files });
  });

  test('a login at a target is dropped there', async () => {
    const { taskId } = await openTask(here, [warehouseRead]);
    const { lease } = held(await here.agent.issueCredential({ taskId, ...warehouseRead }));
    const noWarehouse = edited(files, 'analyst.yaml', (text) =>
      text.replace('tools: [reports, warehouse]', 'tools: [reports]'),
    );
    const roles = () =>
      sql(estate.targetUrl, 'SELECT rolname FROM pg_roles WHERE rolname = $1', [`lh_${lease.leaseId.slice(4)}`]);
    expect((await roles()).length).toBeGreaterThan(0);
    await policy.applyPolicy({ files: noWarehouse, reevaluate: true });
    await expect
      .poll(
        async () =>
          (
            await sql(estate.databaseUrl, 'SELECT outcome FROM leasehold.leases WHERE lease_id = $1', [lease.leaseId])
          )[0],
        { timeout: 15_000 },
      )
      .toEqual({ outcome: 'revoked' });
    expect(await roles()).toEqual([]);
    await policy.applyPolicy({ files });
  });
});
