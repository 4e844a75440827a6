import { execFileSync } from 'node:child_process';
import { timestampDate, timestampFromMs } from '@bufbuild/protobuf/wkt';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { FaultPoint } from '../../src/domain/telemetry.ts';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { CloseCause, Effect, LeaseOutcome, Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { LockService, LockState, type LockScope } from '../../src/gen/leasehold/v1/lock_service_pb.js';
import { PolicyService } from '../../src/gen/leasehold/v1/policy_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import {
  brokerRows,
  callers,
  editConfig,
  eventually,
  expectSettled,
  leasesOf,
  logIn,
  loginOf,
  openTask,
  refusalOf,
  reportsRead,
  rolesOf,
  secondReplica,
  warehouseRead,
} from '../faults/support.ts';
import { createEstate, startInProcess, startProcess, type BrokerProcess, type TestEstate } from '../support/broker.ts';

let estate: TestEstate;
let broker: Awaited<ReturnType<typeof startInProcess>>;
let replica: { configFile: string; httpPort: number };
let second: BrokerProcess;
let onReached: (point: FaultPoint) => void = () => undefined;
beforeAll(async () => {
  estate = await createEstate('locklife', { locks: { peopleToLift: 1, maxTtl: '7d' } });
  await editConfig(estate, (config) => {
    (config['access'] as unknown as object[]).push({
      workloads: ['spiffe://dev.leasehold.test/second-operator'],
      roles: ['operator'],
    });
  });
  replica = await secondReplica(estate);
  broker = await startInProcess(estate, { reached: (point) => onReached(point) });
  second = await startProcess(estate, { configFile: replica.configFile });
});
afterAll(async () => {
  await broker?.stop();
  await second?.stop();
  await estate?.remove();
});

type Scope = LockScope['scope'];
const operator = (port = estate.httpPort) => estate.client(LockService, 'operator', port);
const lockOn = async (scope: Scope, more: { settle?: boolean; expireTime?: ReturnType<typeof timestampFromMs> } = {}) =>
  (await operator().createLock({ requestId: crypto.randomUUID(), scope: { scope }, reason: 'INC-1: drill', ...more }))
    .lock!;
const lift = async (lockId: string) => (await operator().liftLock({ lockId, reason: 'over' })).lock!;
const issue = (taskId: string, access: object = reportsRead, port?: number) =>
  callers(estate, port).agent.issueCredential({ requestId: crypto.randomUUID(), taskId, ...access });
const isLocked = async (call: Promise<unknown>) => expect(await refusalOf(call)).toMatchObject({ reason: 'LOCKED' });

const analyst = 'spiffe://dev.leasehold.test/agent/analyst';

test('each scope locks what it names and nothing else', { timeout: 120_000 }, async () => {
  const [taskId, otherTask] = [await openTask(estate), await openTask(estate)];
  const rounds: [scope: Scope, locked: object[], free: object[], opens: boolean][] = [
    [{ case: 'agent', value: 'analyst' }, [reportsRead, warehouseRead], [], false],
    [{ case: 'workload', value: analyst }, [reportsRead], [], true],
    [{ case: 'workload', value: 'spiffe://dev.leasehold.test/agent/*' }, [reportsRead], [], true],
    // As the opener of the task.
    [{ case: 'workload', value: 'spiffe://dev.leasehold.test/orchestrator' }, [reportsRead], [], false],
    [{ case: 'workload', value: 'spiffe://dev.leasehold.test/agent/analyst/*' }, [], [reportsRead], true],
    [
      { case: 'tool', value: { $typeName: 'leasehold.v1.LockedTool', tool: 'reports', tier: Tier.UNSPECIFIED } },
      [reportsRead],
      [warehouseRead],
      true,
    ],
    [
      { case: 'tool', value: { $typeName: 'leasehold.v1.LockedTool', tool: 'reports', tier: Tier.READ } },
      [reportsRead],
      [warehouseRead],
      true,
    ],
    [
      { case: 'tool', value: { $typeName: 'leasehold.v1.LockedTool', tool: 'warehouse', tier: Tier.WRITE } },
      [],
      [reportsRead, warehouseRead],
      true,
    ],
    [{ case: 'tenant', value: 'default' }, [reportsRead], [], false],
    [{ case: 'all', value: true }, [reportsRead], [], false],
  ];
  for (const [scope, locked, free, opens] of rounds) {
    const { lockId } = await lockOn(scope);
    for (const access of locked) await isLocked(issue(taskId, access, replica.httpPort));
    for (const access of free) await issue(taskId, access, replica.httpPort);
    if (opens) await openTask(estate, replica.httpPort);
    else await isLocked(openTask(estate, replica.httpPort));
    await lift(lockId);
    await issue(taskId, reportsRead, replica.httpPort);
  }
  const { lockId } = await lockOn({ case: 'taskId', value: taskId });
  await isLocked(issue(taskId));
  await issue(otherTask);
  await lift(lockId);
});

test('an agent is told that it is locked, not by whom or why; the audit and an operator know which lock', async () => {
  const taskId = await openTask(estate);
  const { lockId } = await lockOn({ case: 'agent', value: 'analyst' });
  const refusal = await refusalOf(issue(taskId));
  expect(refusal).toMatchObject({ code: 'FailedPrecondition', reason: 'LOCKED' });
  expect(refusal.message).not.toMatch(/INC-1|operator\/|lck_/);
  const [decision] = await brokerRows(
    estate,
    `SELECT detail FROM audit_events WHERE task_id = $1 AND kind = 'decision.made' AND detail ->> 'lock' = $2`,
    [taskId, lockId],
  );
  expect(decision!['detail']).toMatchObject({ effect: 'deny', rule: '', reason: expect.stringMatching(/^LOCKED: /) });
  const explain = (as: string, subject: object) =>
    estate.client(PolicyService, as).explainDecision({ subject } as object);
  const recorded = { case: 'decisionId', value: (decision!['detail'] as Record<string, string>)['decision_id'] };
  expect((await explain('operator', recorded)).reason).toContain(lockId);
  expect((await explain('orchestrator', recorded)).reason).not.toContain(lockId);
  const asked = { case: 'hypothetical', value: { taskId, access: reportsRead } };
  expect(await explain('operator', asked)).toMatchObject({
    effect: Effect.DENY,
    reason: expect.stringMatching(new RegExp(`LOCKED: .*${lockId}.*policy by itself: allow`)) as string,
  });
  expect(
    await brokerRows(estate, `SELECT FROM audit_events WHERE kind = 'task.denied' AND detail ->> 'lock' = $1`, [
      lockId,
    ]),
  ).toEqual([]);
  await isLocked(openTask(estate));
  expect(
    await brokerRows(estate, `SELECT FROM audit_events WHERE kind = 'task.denied' AND detail ->> 'lock' = $1`, [
      lockId,
    ]),
  ).toHaveLength(1);
  await lift(lockId);
});

test('a plan shows what is locked', async () => {
  const { lockId } = await lockOn({
    case: 'tool',
    value: { $typeName: 'leasehold.v1.LockedTool', tool: 'warehouse', tier: Tier.READ },
  });
  const { plan } = await estate.client(TaskService, 'orchestrator').openTask({
    requestId: crypto.randomUUID(),
    intent: 'plan',
    agent: 'analyst',
    tools: [reportsRead, warehouseRead],
  });
  expect(plan.map(({ effect }) => effect)).toEqual([Effect.ALLOW, Effect.DENY]);
  expect(plan[1]!.reason).toMatch(/^LOCKED: the tool warehouse:read is locked/);
  await lift(lockId);
});

test('a credential that the target has made when the lock is placed elsewhere is not handed out, and is gone', async () => {
  const taskId = await openTask(estate);
  const token = await estate.mint('operator');
  const body = JSON.stringify({ scope: { tool: { tool: 'warehouse' } }, reason: 'in the middle' });
  const url = `http://127.0.0.1:${replica.httpPort}/leasehold.v1.LockService/CreateLock`;
  const call = `const r = await fetch(${JSON.stringify(url)}, { method: 'POST', body: process.env.BODY,
    headers: { 'content-type': 'application/json', authorization: 'Bearer ' + process.env.TOKEN } });
    console.log(await r.text());`;
  let lockId = '';
  onReached = (point) => {
    // This broker stands still, with a login made and nothing told, until the other one has placed the lock.
    if (point !== 'issue.credential-made' || lockId !== '') return;
    const env = { ...process.env, BODY: body, TOKEN: token };
    const answer = execFileSync(process.execPath, ['--input-type=module', '-e', call], {
      env,
      encoding: 'utf8',
      timeout: 20_000,
    });
    lockId = (JSON.parse(answer) as { lock: { lockId: string } }).lock.lockId;
  };
  await isLocked(issue(taskId, warehouseRead));
  onReached = () => undefined;
  expect(lockId).toMatch(/^lck_/);
  await eventually(async () => {
    const leases = await leasesOf(estate, taskId);
    expect(leases).toMatchObject([{ state: 'settled', settle_cause: 'abandoned' }]);
    expect(await rolesOf(estate, leases)).toEqual([]);
  });
  await lift(lockId);
});

test('an earlier request_id is refused under a lock, and served again after it', async () => {
  const taskId = await openTask(estate);
  const { agent } = callers(estate);
  for (const access of [reportsRead, warehouseRead]) {
    const request = { requestId: crypto.randomUUID(), taskId, ...access };
    const first = (await agent.issueCredential(request)).credential!.lease!.leaseId;
    const renewal = { requestId: crypto.randomUUID(), leaseId: first };
    await agent.renewCredential(renewal);
    const { lockId } = await lockOn({ case: 'taskId', value: taskId });
    await isLocked(agent.issueCredential(request));
    await isLocked(callers(estate, replica.httpPort).agent.issueCredential(request));
    await isLocked(agent.renewCredential(renewal));
    await lift(lockId);
    expect((await agent.issueCredential(request)).credential!.lease!.leaseId).toBe(first);
  }
});

test('a lock that settles closes what is open under it: the login is dead, the tokens are on the feed', async () => {
  const tasks = [await openTask(estate), await openTask(estate, replica.httpPort)];
  const logins = [];
  for (const taskId of tasks) {
    await issue(taskId, reportsRead);
    logins.push(loginOf((await issue(taskId, warehouseRead)).credential));
  }
  for (const login of logins) await (await logIn(login)).end();
  const lock = await lockOn({ case: 'agent', value: 'analyst' }, { settle: true });
  for (const taskId of tasks) await expectSettled(estate, taskId);
  for (const login of logins) await expect(logIn(login)).rejects.toMatchObject({ code: '28P01' });
  const feed = await brokerRows(estate, 'SELECT DISTINCT task_id FROM revocations WHERE task_id = ANY($1)', [tasks]);
  expect(feed).toHaveLength(2);
  const { task } = await callers(estate).orchestrator.getTask({ taskId: tasks[0]! });
  expect(task!.closeCause).toBe(CloseCause.LOCKED);
  await eventually(async () => {
    const found = await operator().getLock({ lockId: lock.lockId });
    expect(found.lock!.settleTime).toBeDefined();
    expect(found.reach).toMatchObject({ openTasks: 0, unsettledLeases: 0, boundedLeases: 0 });
  });
  await lift(lock.lockId);
});

test('a lock on a tool that settles ends its credentials and leaves the tasks open', async () => {
  const taskId = await openTask(estate);
  const other = loginOf((await issue(taskId, warehouseRead)).credential);
  const { credential } = await issue(taskId, reportsRead);
  const tool = { $typeName: 'leasehold.v1.LockedTool', tool: 'reports', tier: Tier.UNSPECIFIED } as const;
  const { lockId } = await lockOn({ case: 'tool', value: tool }, { settle: true });
  const { leaseId } = credential!.lease!;
  await eventually(async () => {
    expect(await brokerRows(estate, 'SELECT FROM revocations WHERE lease_id = $1', [leaseId])).toHaveLength(1);
  });
  const { leases, task } = await callers(estate).orchestrator.getTask({ taskId });
  expect(leases.find((lease) => lease.leaseId === leaseId)).toMatchObject({ outcome: LeaseOutcome.REVOKED });
  expect(task!.closeTime).toBeUndefined();
  await (await logIn(other)).end();
  await lift(lockId);
});

test('two people lift a lock where the configuration says so, and the same one twice is one', async () => {
  const lock = await lockOn({ case: 'agent', value: 'analyst' });
  await brokerRows(estate, 'UPDATE locks SET people_to_lift = 2 WHERE lock_id = $1', [lock.lockId]);
  const taskId = await openTask(estate).catch(() => '');
  expect(taskId).toBe('');
  for (let round = 0; round < 2; round++) {
    expect(await lift(lock.lockId)).toMatchObject({
      state: LockState.ACTIVE,
      liftRequestedBy: 'spiffe://dev.leasehold.test/operator',
      liftReason: 'over',
    });
  }
  await isLocked(openTask(estate, replica.httpPort));
  const other = estate.client(LockService, 'second-operator', replica.httpPort);
  const lifted = await other.liftLock({ lockId: lock.lockId, reason: 'agreed' });
  expect(lifted.lock).toMatchObject({
    state: LockState.LIFTED,
    endedBy: 'spiffe://dev.leasehold.test/second-operator',
  });
  await openTask(estate, replica.httpPort);
  const events = await brokerRows(
    estate,
    `SELECT kind, actor FROM audit_events WHERE detail ->> 'lock' = $1 AND kind LIKE 'lock.%' ORDER BY event_id`,
    [lock.lockId],
  );
  expect(events.map(({ kind, actor }) => [kind, (actor as string).split('/').at(-1)])).toEqual([
    ['lock.created', 'operator'],
    ['lock.lift_requested', 'operator'],
    ['lock.lifted', 'second-operator'],
  ]);
});

test('a lock ends by its time, on every replica, and that is on the record', async () => {
  const taskId = await openTask(estate);
  const { lockId } = await lockOn(
    { case: 'tenant', value: 'default' },
    { expireTime: timestampFromMs(Date.now() + 1_500) },
  );
  await isLocked(issue(taskId));
  await isLocked(issue(taskId, reportsRead, replica.httpPort));
  await eventually(async () => {
    await issue(taskId, reportsRead, replica.httpPort);
    await issue(taskId);
  });
  const { lock } = await operator().getLock({ lockId });
  expect(lock).toMatchObject({ state: LockState.EXPIRED, endedBy: 'broker' });
  expect(timestampDate(lock!.endTime!).getTime()).toBeGreaterThanOrEqual(timestampDate(lock!.expireTime!).getTime());
  expect(
    await brokerRows(estate, `SELECT FROM audit_events WHERE kind = 'lock.expired' AND detail ->> 'lock' = $1`, [
      lockId,
    ]),
  ).toHaveLength(1);
});

test(
  'a lock outlives every replica, and a broker that starts finishes what it was to settle',
  { timeout: 120_000 },
  async () => {
    const taskId = await openTask(estate);
    const login = loginOf((await issue(taskId, warehouseRead)).credential);
    // Nobody is there to settle when it is placed.
    await broker.stop();
    await second.stop();
    const lockId = `lck_${'0'.repeat(31)}1`;
    await brokerRows(
      estate,
      `INSERT INTO locks (tenant, lock_id, scope, subject, reason, placed_in, placed_by, placed_at, request_id, settle, people_to_lift)
     VALUES ('default', $1, 'workload', 'spiffe://dev.leasehold.test/agent/*', 'test', 'default',
       'spiffe://dev.leasehold.test/operator', now(), gen_random_uuid(), true, 1)`,
      [lockId],
    );
    await brokerRows(estate, 'UPDATE lock_state SET epoch = epoch + 1');
    broker = await startInProcess(estate, { reached: (point) => onReached(point) });
    second = await startProcess(estate, { configFile: replica.configFile });
    await expectSettled(estate, taskId);
    await expect(logIn(login)).rejects.toMatchObject({ code: '28P01' });
    await isLocked(issue(await openTask(estate)));
    const status = await estate.client(AdminService, 'operator').getStatus({});
    expect(status.components.find(({ name }) => name === 'locks')).toMatchObject({
      detail: expect.stringMatching(/^1 in force \(workload\)/),
    });
    expect(await (await fetch(`${estate.httpUrl}/metrics`)).text()).toMatch(/^leasehold_locks_in_force 1$/m);
    await lift(lockId);
  },
);

test('what cannot be meant is refused before anything is locked', async () => {
  const refused = async (scope: Scope, more: object = {}) => await refusalOf(lockOn(scope, more));
  expect(await refused({ case: 'agent', value: 'analist' })).toMatchObject({ reason: 'NAME_UNKNOWN' });
  expect(await refused({ case: 'workload', value: 'spiffe://dev.leasehold.test/*/x' })).toMatchObject({
    reason: 'FIELD_INVALID',
  });
  expect(await refused({ case: 'taskId', value: `tsk_${'0'.repeat(32)}` })).toMatchObject({ reason: 'TASK_NOT_FOUND' });
  expect(await refused({ case: undefined })).toMatchObject({ reason: 'FIELD_INVALID' });
  const [past, far] = [Date.now() - 1_000, Date.now() + 8 * 86_400_000].map((at) => timestampFromMs(at));
  for (const expireTime of [past, far]) {
    expect(await refused({ case: 'agent', value: 'analyst' }, { expireTime })).toMatchObject({
      reason: 'FIELD_INVALID',
    });
  }
  expect((await operator().listLocks({})).locks).toEqual([]);
});

test('the same request_id places one lock, and another content under it is refused', async () => {
  const request = {
    requestId: crypto.randomUUID(),
    scope: { scope: { case: 'agent', value: 'analyst' } as const },
    reason: 'once',
  };
  const [a, b] = await Promise.all([operator().createLock(request), operator(replica.httpPort).createLock(request)]);
  expect(a.lock).toEqual(b.lock);
  expect(await refusalOf(operator().createLock({ ...request, reason: 'twice' }))).toMatchObject({
    reason: 'REQUEST_ID_REUSED',
  });
  await lift(a.lock!.lockId);
  // It has ended; a late repetition of the call does not lock anew.
  expect((await operator().createLock(request)).lock).toMatchObject({ state: LockState.LIFTED });
  await openTask(estate);
});
