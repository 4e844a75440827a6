import { randomUUID } from 'node:crypto';
import { cp, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { canary } from '../../src/domain/detectors/canary.ts';
import type { Use } from '../../src/domain/detectors/detector.ts';
import { networkOf } from '../../src/domain/detectors/network.ts';
import { undeclaredCall } from '../../src/domain/detectors/undeclared-call.ts';
import { usedElsewhere } from '../../src/domain/detectors/used-elsewhere.ts';
import { createWindowCounter } from '../../src/domain/detectors/window.ts';
import { ToolCallOutcome, ToolCallService } from '../../src/gen/leasehold/v1/tool_call_service_pb.js';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { LockService } from '../../src/gen/leasehold/v1/lock_service_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { runCli } from '../cli/run-cli.ts';
import { held, openTask, parties, prepareEstate, reportsRead, refusal } from '../e2e/support.ts';
import { startInProcess, type TestEstate } from '../support/broker.ts';
import { SignalService } from '../../src/gen/leasehold/v1/signal_service_pb.js';
import { fixtures, followFeed } from './support.ts';

const use = (call: Partial<Use['call']> = {}, more: Partial<Use> = {}): Use => ({
  call: {
    agent: 'analyst',
    workload: 'w',
    taskId: 'tsk_1',
    tool: 'orders',
    tier: 'read',
    leaseId: 'lse_1',
    reporter: 'tool',
    violations: [],
    peer: undefined,
    ...call,
  },
  canary: false,
  firstAddress: undefined,
  ...more,
});

describe('a detector finds', () => {
  const peer = (address: string) => ({ workload: '', address });

  test('the use of a canary, whoever tells of it', () => {
    expect(canary.look(use())).toBeUndefined();
    for (const reporter of ['tool', 'agent'] as const) {
      expect(canary.look(use({ reporter }, { canary: true }))).toMatchObject({
        subject: { kind: 'agent', name: 'analyst' },
      });
    }
  });

  test.each([
    ['another workload, seen by the tool', use({ violations: ['other_workload'] }), true],
    ['another workload, in the words of an agent', use({ reporter: 'agent', violations: ['other_workload'] }), false],
    ['the same network', use({ peer: peer('192.0.2.200:4711') }, { firstAddress: '192.0.2.7' }), false],
    ['another network', use({ peer: peer('198.51.100.7') }, { firstAddress: '192.0.2.7' }), true],
    ['another site of IPv6', use({ peer: peer('[2001:db8:2::1]:443') }, { firstAddress: '2001:db8:1::1' }), true],
    ['the same site of IPv6', use({ peer: peer('2001:0db8:1:ffff::1') }, { firstAddress: '2001:db8:1::1' }), false],
    ['an address that is none', use({ peer: peer('somewhere') }, { firstAddress: '192.0.2.7' }), false],
  ])('use from elsewhere: %s', (_what, seen, found) => {
    expect(usedElsewhere.look(seen) !== undefined).toBe(found);
  });

  test('calls that were not declared', () => {
    expect(undeclaredCall.look(use({ violations: ['ended_late'] }))).toBeUndefined();
    expect(undeclaredCall.look(use({ violations: ['undeclared_action'] }))).toMatchObject({
      subject: { kind: 'task', name: 'tsk_1' },
      reason: 'a recorded call: undeclared_action',
    });
  });

  test('networks of addresses only', () => {
    expect(['192.0.2.7', '::ffff:192.0.2.7', '::1', '[::1]:80'].map(networkOf)).toEqual([
      '192.0.2.0/24',
      '192.0.2.0/24',
      '0:0:0::/48',
      '0:0:0::/48',
    ]);
    expect(['', '1.2.3', '999.1.1.1', '1::2::3', 'g::1', '1:2:3', 'a'.repeat(5_000)].map(networkOf)).toEqual(
      Array(7).fill(undefined),
    );
  });

  test('a rate within a window that slides, with bounded memory', () => {
    const counter = createWindowCounter(1_000, 2);
    expect([0, 10, 20].map((at) => counter.add('a', at))).toEqual([1, 2, 3]);
    expect(counter.add('a', 1_500)).toBe(1 + 3 * 0.5);
    expect(counter.add('a', 4_000)).toBe(1);
    for (const key of ['b', 'c', 'd']) counter.add(key, 4_000);
    expect(counter.add('a', 4_001)).toBe(1);
  });
});

describe('with a broker', () => {
  let estate: TestEstate;
  let broker: Awaited<ReturnType<typeof startInProcess>>;
  let feed: ReturnType<typeof followFeed>;
  beforeAll(async () => {
    estate = await prepareEstate('sigdet', {
      signals: { detectors: { undeclaredCall: { threshold: 2 }, unusualRate: { threshold: 20, window: '10s' } } },
    });
    await cp(path.join(fixtures, 'detectors.yaml'), path.join(estate.policyDir, 'detectors.yaml'));
    broker = await startInProcess(estate);
    feed = followFeed(estate);
  });
  afterAll(async () => {
    feed.stop();
    await broker.stop(500);
    await estate.remove();
  });

  const signals = () => estate.client(SignalService, 'operator');
  const record = (workload: string, call: object) =>
    estate.client(ToolCallService, workload).recordToolCall({
      call: { requestId: randomUUID(), ...call },
      outcome: ToolCallOutcome.SUCCEEDED,
    });
  const ordersRead = { tool: 'orders', tier: Tier.READ };
  const vaultRead = { tool: 'vault', tier: Tier.READ };
  const working = async (access: { tool: string; tier: Tier }, more: { tool: string; tier: Tier }[] = []) => {
    const served = parties(estate);
    const { taskId } = await openTask(served, [access, ...more]);
    const { lease } = held(await served.agent.issueCredential({ requestId: randomUUID(), taskId, ...access }));
    return { taskId, leaseId: lease.leaseId, served };
  };
  const stopped = (leaseId: string) => expect.poll(() => feed.revoked.has(leaseId), { timeout: 10_000 }).toBe(true);

  test('a credential used by another workload than it was issued to stops its task', async () => {
    const { taskId, leaseId } = await working(ordersRead);
    const other = await working(ordersRead);
    const action = 'orders.list';
    await record('tool/orders', {
      taskId,
      leaseId,
      ...ordersRead,
      action,
      peer: { workload: 'spiffe://x/y', address: '' },
    });
    await stopped(leaseId);
    expect(feed.revoked.has(other.leaseId)).toBe(false);
  });

  test('calls that were not declared stop it once there are as many as the threshold says', async () => {
    const { taskId, leaseId } = await working(ordersRead);
    await record('tool/orders', { taskId, leaseId, ...ordersRead, action: 'orders.drop' });
    const subject = { subject: { case: 'taskId', value: taskId } } as const;
    expect((await signals().listSignals({ subject })).signals).toEqual([]);
    await record('tool/orders', { taskId, leaseId, ...ordersRead, action: 'orders.drop' });
    await stopped(leaseId);
    expect((await signals().listSignals({ subject })).signals).toMatchObject([
      { kind: 'undeclared_call', source: 'leasehold/detectors/undeclaredCall' },
    ]);
  });

  test('an agent that calls too often is stopped', async () => {
    const { taskId, leaseId } = await working(ordersRead);
    for (let i = 0; i < 21; i++)
      await record('agent/analyst', { taskId, leaseId, ...ordersRead, action: 'orders.list' });
    await stopped(leaseId);
    const { signals: said } = await signals().listSignals({ kinds: ['unusual_rate'] });
    expect(said).toHaveLength(1);
    await signals().clearSignals({ signalIds: said.map(({ signalId }) => signalId) });
  });

  test('the use of a canary locks its agent, and settles all that it holds', async () => {
    const honest = await working(reportsRead);
    const { taskId, leaseId } = await working(vaultRead);
    await record('tool/vault', { taskId, leaseId, ...vaultRead, action: 'open' });
    // By the signal, or with its whole task by the lock, whichever is first.
    await expect.poll(() => feed.revoked.has(leaseId) || feed.revoked.has(taskId), { timeout: 10_000 }).toBe(true);
    const locks = estate.client(LockService, 'operator');
    const inForce = async () => (await locks.listLocks({})).locks.map(({ placedBy, reason }) => [placedBy, reason]);
    await expect
      .poll(inForce, { timeout: 10_000 })
      .toEqual([['leasehold/detectors/canary', 'vault:read was used, which nobody should']]);
    // Also what no rule about signals concerns.
    await expect
      .poll(async () => (await honest.served.tasks.getTask({ taskId: honest.taskId })).summary?.unsettled, {
        timeout: 10_000,
      })
      .toBe(0);
    const { served } = honest;
    const again = await openTask(served, [reportsRead]).catch((error: unknown) => error);
    const refused =
      again instanceof Error
        ? await refusal(Promise.reject(again))
        : await refusal(served.agent.issueCredential({ taskId: (again as { taskId: string }).taskId, ...reportsRead }));
    expect(refused.reason).toBe('LOCKED');
    const { signals: said } = await signals().listSignals({ kinds: ['canary_used'] });
    expect(said[0]!.expireTime).toBeUndefined();
    await signals().clearSignals({ signalIds: said.map(({ signalId }) => signalId) });
  });

  test('an overdue review is told as a signal, stops open leases, and is taken back when the date is moved', async () => {
    const { tasks } = parties(estate);
    const agent = estate.client(CredentialService, 'agent/forgotten');
    const { task } = await tasks.openTask({ intent: 'x', agent: 'forgotten', tools: [ordersRead] });
    // The rule lets it through in its first second, so that there is a lease to be stopped.
    const { lease } = held(
      await agent.issueCredential({ requestId: randomUUID(), taskId: task!.taskId, ...ordersRead }),
    );
    const overdue = async () =>
      (await signals().listSignals({ kinds: ['review_overdue'] })).signals.map(({ subject }) => subject!.subject.value);
    await expect.poll(overdue, { timeout: 15_000 }).toEqual(['forgotten']);
    expect(await fetch(`${estate.httpUrl}/metrics`).then((answer) => answer.text())).toMatch(
      /^leasehold_agents_review_overdue 1$/m,
    );
    const environment = { LEASEHOLD_SERVER: estate.httpUrl, LEASEHOLD_TOKEN: await estate.mint('operator') };
    const listed = await runCli(['agent', 'list', '--overdue'], environment);
    expect(listed.stdout).toMatch(/^forgotten +gone@leasehold\.test +- +2020-01-31 +overdue/m);
    expect(listed.stdout).not.toContain('analyst');
    // Another word about it has it decided again, as the date's passing does.
    await signals().reportSignals({
      signals: [{ subject: { subject: { case: 'agent', value: 'forgotten' } }, kind: 'anomaly', value: 1 }],
    });
    await stopped(lease.leaseId);

    const file = path.join(estate.policyDir, 'detectors.yaml');
    await writeFile(file, (await readFile(file, 'utf8')).replace('2020-01-31', '2999-01-31'));
    await expect.poll(overdue, { timeout: 20_000 }).toEqual([]);
  }, 60_000);
});
