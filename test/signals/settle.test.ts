import { randomUUID } from 'node:crypto';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { LeaseOutcome, LeaseState } from '../../src/gen/leasehold/v1/common_pb.js';
import { PolicyService } from '../../src/gen/leasehold/v1/policy_service_pb.js';
import {
  analystId,
  auditOf,
  held,
  logIn,
  loginOf,
  loginRefusal,
  openTask,
  refusal,
  reportsRead,
  warehouseRead,
} from '../e2e/support.ts';
import { startProcess, type BrokerProcess } from '../support/broker.ts';
import { replicaConfig } from '../revisions/support.ts';
import { followFeed, serveSignals, type SignalEstate } from './support.ts';

let served: SignalEstate;
let feed: ReturnType<typeof followFeed>;
beforeAll(async () => {
  served = await serveSignals('sigsettle');
  feed = followFeed(served.estate);
});
afterEach(async () => {
  const { signals } = await served.operator.listSignals({});
  if (signals.length > 0) await served.operator.clearSignals({ signalIds: signals.map(({ signalId }) => signalId) });
});
afterAll(async () => {
  feed.stop();
  await served.stop();
});

const aboutAgent = { subject: { case: 'agent', value: 'analyst' } } as const;
const issue = async (taskId: string, access = reportsRead) =>
  held(await served.agent.issueCredential({ requestId: randomUUID(), taskId, ...access }));

const onFeed = (leaseId: string) =>
  expect.poll(() => feed.revoked.has(leaseId), { timeout: 10_000, interval: 5 }).toBe(true);

describe('a signal', () => {
  test('puts the token of a lease that no longer stands on the feed, and its login out of the target', async () => {
    const { taskId } = await openTask(served, [reportsRead, warehouseRead]);
    const token = await issue(taskId);
    const login = await issue(taskId, warehouseRead);
    const session = await logIn(loginOf(login));
    const ended = new Promise((resolve) => session.once('end', resolve));

    const { signals } = await served.scanner.reportSignals({
      requestId: randomUUID(),
      signals: [{ subject: aboutAgent, kind: 'owner_left', reason: 'left on Friday' }],
    });
    expect(signals).toMatchObject([
      { kind: 'owner_left', value: 100, source: 'spiffe://dev.leasehold.test/scanner', reason: 'left on Friday' },
    ]);
    await onFeed(token.lease.leaseId);
    await ended;
    expect(await loginRefusal(loginOf(login))).toBe('28P01');
    await expect
      .poll(async () => (await served.tasks.getTask({ taskId })).leases.map(({ outcome, state }) => [state, outcome]))
      .toEqual([
        [LeaseState.SETTLED, LeaseOutcome.REVOKED],
        [LeaseState.SETTLED, LeaseOutcome.REVOKED],
      ]);
    // The task itself goes on: what is asked for now is decided now.
    const refused = await refusal(served.agent.issueCredential({ taskId, ...reportsRead }));
    expect(refused).toMatchObject({ reason: 'POLICY_DENIED', message: expect.stringContaining('no longer there') });

    const events = await auditOf(served, taskId);
    const stopped = events.filter(({ kind, leaseId }) => kind === 'decision.made' && leaseId === token.lease.leaseId);
    expect(stopped.at(-1)!.detail).toMatchObject({
      reevaluation: true,
      effect: 'deny',
      rule: 'signals/owner-is-gone',
      asked: { facts: { signals: [{ subject: 'agent', kind: 'owner_left', value: 100 }] } },
    });
  });

  test('stops only what a rule that reads it says, and gives nothing back when it is cleared', async () => {
    const { taskId } = await openTask(served, [reportsRead, { tool: 'ticker', tier: reportsRead.tier }]);
    const reports = await issue(taskId);
    const { signals } = await served.scanner.reportSignals({
      signals: [{ subject: { subject: { case: 'tool', value: 'reports' } }, kind: 'risk', value: 70 }],
    });
    await onFeed(reports.lease.leaseId);
    await served.scanner.clearSignals({ signalIds: [signals[0]!.signalId], reason: 'false alarm' });
    const again = await issue(taskId);
    expect(again.lease.leaseId).not.toBe(reports.lease.leaseId);
    expect(feed.revoked.has(again.lease.leaseId)).toBe(false);

    // Below the bound of the rule.
    await served.scanner.reportSignals({ signals: [{ subject: aboutAgent, kind: 'risk', value: 69 }] });
    await served.scanner.reportSignals({
      signals: [{ subject: { subject: { case: 'workload', value: analystId } }, kind: 'risk', value: 70 }],
    });
    await onFeed(again.lease.leaseId);
  });

  test('about a task concerns that task and those below it, and no other', async () => {
    const [one, other] = [await openTask(served, [reportsRead]), await openTask(served, [reportsRead])];
    const [mine, theirs] = [await issue(one.taskId), await issue(other.taskId)];
    await served.operator.reportSignals({
      signals: [{ subject: { subject: { case: 'taskId', value: one.taskId } }, kind: 'x_quarantine' }],
    });
    await onFeed(mine.lease.leaseId);
    expect(feed.revoked.has(theirs.lease.leaseId)).toBe(false);
    expect((await refusal(served.agent.issueCredential({ taskId: one.taskId, ...reportsRead }))).reason).toBe(
      'POLICY_DENIED',
    );
    await issue(other.taskId);
    // It is in the task's own trail.
    expect((await auditOf(served, one.taskId)).map(({ kind }) => kind)).toContain('signal.reported');
  });

  test('is seen by a plan, and by an explanation of what nobody asked for', async () => {
    await served.operator.reportSignals({ signals: [{ subject: aboutAgent, kind: 'owner_left' }] });
    const { plan } = await openTask(served, [reportsRead]);
    expect(plan[0]).toMatchObject({ policyRule: 'signals/owner-is-gone' });
    const policy = served.estate.client(PolicyService, 'auditor');
    const explained = await policy.explainDecision({
      subject: { case: 'hypothetical', value: { agent: 'analyst', access: reportsRead } },
    });
    expect(explained.policyRule).toBe('signals/owner-is-gone');
    const rule = explained.rules.find(({ rule }) => rule === 'signals/owner-is-gone')!;
    expect(rule.saw).toEqual([
      { $typeName: expect.any(String), expression: 'signals', value: expect.stringContaining('"kind":"owner_left"') },
    ]);
  });

  test('that runs out has been in force until then', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    await served.operator.reportSignals({
      signals: [{ subject: aboutAgent, kind: 'owner_left', expireTime: timestampFromMs(Date.now() + 1_200) }],
    });
    expect((await refusal(served.agent.issueCredential({ taskId, ...reportsRead }))).reason).toBe('POLICY_DENIED');
    await expect
      .poll(
        () =>
          issue(taskId).then(
            () => 'issued',
            () => 'refused',
          ),
        { timeout: 5_000 },
      )
      .toBe('issued');
    expect((await served.operator.listSignals({})).signals).toEqual([]);
  });
});

test('what was allowed because of a signal ends with it', async () => {
  const vouch = (life: number) =>
    served.operator.reportSignals({
      signals: [{ subject: aboutAgent, kind: 'x_attested', expireTime: timestampFromMs(Date.now() + life) }],
    });
  const { taskId } = await openTask(served, [reportsRead], { context: { strict: 'yes' } });
  expect((await refusal(served.agent.issueCredential({ taskId, ...reportsRead }))).reason).toBe('POLICY_DENIED');
  // Told again and again, it is in force until the end of its last word.
  for (const life of [200, 300, 3_000]) await vouch(life);
  const { lease } = await issue(taskId, reportsRead);
  await onFeed(lease.leaseId);
  const events = await auditOf(served, taskId);
  const last = events.filter(({ kind, leaseId }) => kind === 'decision.made' && leaseId === lease.leaseId).at(-1)!;
  expect(last.detail).toMatchObject({ reevaluation: true, rule: 'signals/attested-only' });
});

describe('on two replicas', () => {
  let other: BrokerProcess;
  let port: number;
  beforeAll(async () => {
    const replica = await replicaConfig(served.estate);
    port = replica.httpPort;
    other = await startProcess(served.estate, { configFile: replica.configFile });
  });
  afterAll(() => other.stop());

  test('a signal that one took is met by the next decision of the other, and either settles', async () => {
    const { taskId } = await openTask(served, [reportsRead, warehouseRead]);
    const token = await issue(taskId);
    const login = await issue(taskId, warehouseRead);
    await served.scanner.reportSignals({ signals: [{ subject: aboutAgent, kind: 'owner_left' }] });
    const { CredentialService } = await import('../../src/gen/leasehold/v1/credential_service_pb.js');
    const agent = served.estate.client(CredentialService, 'agent/analyst', port);
    // The board of the other replica is a moment behind at most.
    await expect
      .poll(
        async () => (await refusal(agent.issueCredential({ taskId, ...reportsRead })).catch(() => undefined))?.reason,
      )
      .toBe('POLICY_DENIED');
    await onFeed(token.lease.leaseId);
    await expect.poll(() => loginRefusal(loginOf(login)), { timeout: 5_000 }).toBe('28P01');
    // What slipped through before the other had heard of it is met by a later pass.
    await expect
      .poll(async () => (await served.tasks.getTask({ taskId })).summary?.unsettled, { timeout: 5_000 })
      .toBe(0);
  });
});
