import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { LeaseOutcome, LeaseState, TaskState } from '../../src/gen/leasehold/v1/common_pb.js';
import { SettlementService } from '../../src/gen/leasehold/v1/settlement_service_pb.js';
import {
  brokerRows,
  callers,
  eventually,
  expectSettled,
  loginOf,
  openTask,
  ordersSeenBy,
  refusalOf,
  reportsRead,
} from '../faults/support.ts';
import { eventsOf, leaseRow, longExpired, openSite, roleIsThere, type Site } from './support.ts';

let site: Site;
beforeAll(async () => {
  site = await openSite('care');
});
afterAll(async () => {
  await site?.stop();
});

const reason = 'CHG-88: that cluster was dismantled';

/** A closed task whose login cannot be revoked, because the network is down. */
async function stuck(hoursSinceExpiry: number) {
  const issued = await site.issue();
  await site.network.mode('refuse');
  await callers(site.estate).orchestrator.closeTask({ taskId: issued.taskId });
  const { leaseId } = issued.lease;
  await eventually(async () => expect((await leaseRow(site, leaseId))['settle_error']).not.toBeNull());
  if (hoursSinceExpiry > 0) {
    await longExpired(site, leaseId, hoursSinceExpiry);
    await eventually(async () => {
      const { outcome } = await leaseRow(site, leaseId);
      expect(outcome).toBe(hoursSinceExpiry > 24 ? 'irrevocable' : null);
    });
  }
  return { ...issued, leaseId, role: loginOf(issued.credential).username };
}

async function metricOf(name: string): Promise<number | undefined> {
  const text = await (await fetch(`${site.estate.httpUrl}/metrics`)).text();
  const line = text.split('\n').find((each) => each.startsWith(`${name}{provider="postgres",target="warehouse"}`));
  return line === undefined ? undefined : Number(line.split(' ').at(-1));
}

test(
  'a credential that could not be revoked for a day is irrevocable, says what to do, and is retried on request',
  { timeout: 90_000 },
  async () => {
    const { leaseId, role, taskId } = await stuck(25);
    // The truth: it is there, and the broker does not say otherwise.
    expect(await roleIsThere(site, role)).toBe(true);
    const { lease } = await site.operator.getLease({ leaseId });
    expect(lease).toMatchObject({ state: LeaseState.SETTLED, outcome: LeaseOutcome.IRREVOCABLE });
    expect(lease!.settlement).toMatchObject({ target: 'warehouse', handle: `warehouse/${role}`, cause: 'closed' });
    expect(lease!.settlement!.advice).toContain(`leasehold lease settle ${leaseId} --retry`);
    expect(lease!.settlement!.nextAttemptTime).toBeDefined();
    expect((await site.admin.listLeases({ troubled: true })).leases.map((each) => each.leaseId)).toEqual([leaseId]);
    await eventually(async () => {
      const { task } = await callers(site.estate).orchestrator.getTask({ taskId });
      expect(task).toMatchObject({ state: TaskState.CLOSE_DEGRADED });
      expect(task!.settleTime).toBeDefined();
    });
    await eventually(async () => expect(await metricOf('leasehold_leases_irrevocable')).toBe(1), 40_000);

    const dry = await site.operator.retrySettlement({ troubled: true, dryRun: true });
    expect(dry.leases.map((each) => each.leaseId)).toEqual([leaseId]);
    expect(await eventsOf(site, leaseId, 'lease.retried')).toEqual([]);

    await site.network.mode('pass');
    const requestId = crypto.randomUUID();
    const retried = await site.operator.retrySettlement({ requestId, taskId });
    expect(retried.leases).toMatchObject([{ leaseId, settleAttempts: 0 }]);
    await eventually(async () => expect(await roleIsThere(site, role)).toBe(false));
    await eventually(async () => expect((await leaseRow(site, leaseId))['outcome']).toBe('expired'));
    expect(await eventsOf(site, leaseId, 'lease.retried')).toMatchObject([
      { actor: 'spiffe://dev.leasehold.test/operator', detail: { request_id: requestId, state: 'irrevocable' } },
    ]);
    expect(await eventsOf(site, leaseId, 'lease.corrected')).toMatchObject([
      { actor: 'broker', detail: { from: 'irrevocable', outcome: 'expired' } },
    ]);
    await expectSettled(site.estate, taskId);
    expect((await site.admin.listLeases({ troubled: true })).leases).toEqual([]);
  },
);

test(
  'the broker goes on trying an irrevocable one by itself, and a late success corrects it',
  { timeout: 60_000 },
  async () => {
    const { leaseId, role, taskId } = await stuck(25);
    await site.network.mode('pass');
    const { settle_at: next } = await leaseRow(site, leaseId);
    // About an hour later, within the spread.
    expect((next as Date).getTime() - Date.now()).toBeGreaterThan(20 * 60_000);
    await brokerRows(site.estate, 'UPDATE leases SET settle_at = now() WHERE lease_id = $1', [leaseId]);
    await eventually(async () => expect((await leaseRow(site, leaseId))['outcome']).toBe('expired'), 30_000);
    expect(await roleIsThere(site, role)).toBe(false);
    expect(await eventsOf(site, leaseId, 'lease.corrected')).toHaveLength(1);
    await expectSettled(site.estate, taskId);
  },
);

describe('a credential that could simply be revoked cannot be abandoned', () => {
  test('an active one, a token, one that is unknown, one without a reason', async () => {
    const { leaseId } = (await site.issue()).lease;
    const refused = async (id: string, why = reason) =>
      await refusalOf(site.operator.abandonLease({ leaseId: id, reason: why }));
    expect(await refused(leaseId)).toMatchObject({
      reason: 'ABANDON_REFUSED',
      message: expect.stringContaining('close its task') as string,
    });
    expect(await refused(leaseId, 'because')).toMatchObject({ reason: 'FIELD_INVALID' });
    expect(await refused(`lse_${'0'.repeat(32)}`)).toMatchObject({ reason: 'LEASE_NOT_FOUND' });
    const taskId = await openTask(site.estate);
    const { credential } = await callers(site.estate).agent.issueCredential({ taskId, ...reportsRead });
    await callers(site.estate).orchestrator.closeTask({ taskId });
    expect(await refused(credential!.lease!.leaseId)).toMatchObject({ reason: 'ABANDON_REFUSED' });
  });

  test('one that still lives: its login works at the target', { timeout: 60_000 }, async () => {
    const { leaseId, credential, taskId } = await stuck(0);
    expect(await ordersSeenBy(loginOf(credential))).toBe(3);
    const refusal = await refusalOf(site.operator.abandonLease({ leaseId, reason }));
    expect(refusal).toMatchObject({
      reason: 'ABANDON_REFUSED',
      message: expect.stringContaining('lives until') as string,
    });
    await site.network.mode('pass');
    await expectSettled(site.estate, taskId, 60_000);
  });

  test('one whose target answers again: it is revoked instead', { timeout: 60_000 }, async () => {
    const { leaseId, role } = await stuck(1);
    await site.network.mode('pass');
    const { lease } = await site.operator.abandonLease({ leaseId, reason });
    expect(lease).toMatchObject({ state: LeaseState.SETTLED, outcome: LeaseOutcome.EXPIRED });
    expect(lease!.settlement!.abandonedBy).toBe('');
    expect(await roleIsThere(site, role)).toBe(false);
    expect(await eventsOf(site, leaseId, 'lease.given_up')).toEqual([]);
  });
});

test(
  'one that is abandoned is audited with who and why, left alone, listed, and can be taken up again',
  { timeout: 90_000 },
  async () => {
    const { leaseId, role, taskId } = await stuck(1);
    const { lease } = await site.operator.abandonLease({ leaseId, reason });
    const by = 'spiffe://dev.leasehold.test/operator';
    expect(lease).toMatchObject({ state: LeaseState.SETTLED, outcome: LeaseOutcome.IRREVOCABLE });
    expect(lease!.settlement).toMatchObject({ abandonedBy: by, abandonReason: reason, advice: '' });
    expect(lease!.settlement!.nextAttemptTime).toBeUndefined();
    expect(await eventsOf(site, leaseId, 'lease.given_up')).toMatchObject([
      { actor: by, detail: { reason, target: 'warehouse' } },
    ]);
    // The same again changes nothing.
    await site.operator.abandonLease({ leaseId, reason: 'another reason, by mistake' });
    expect(await eventsOf(site, leaseId, 'lease.given_up')).toHaveLength(1);
    expect((await site.admin.listLeases({ troubled: true })).leases).toEqual([]);
    expect((await site.admin.listLeases({ abandoned: true })).leases.map((each) => each.leaseId)).toEqual([leaseId]);
    await eventually(async () => {
      const { task } = await callers(site.estate).orchestrator.getTask({ taskId });
      expect(task!.state).toBe(TaskState.CLOSE_DEGRADED);
    });

    // Nobody tries it any more, not even when it is due and its target is back.
    await site.network.mode('pass');
    const { settle_attempts: attempts } = await leaseRow(site, leaseId);
    await brokerRows(site.estate, 'UPDATE leases SET settle_at = now() WHERE lease_id = $1', [leaseId]);
    const other = await site.issue();
    await callers(site.estate).orchestrator.closeTask({ taskId: other.taskId });
    await expectSettled(site.estate, other.taskId, 60_000);
    expect(await leaseRow(site, leaseId)).toMatchObject({ settle_attempts: attempts, outcome: 'irrevocable' });
    expect((await site.operator.retrySettlement({ troubled: true })).leases).toEqual([]);

    expect((await site.operator.retrySettlement({ leaseIds: [leaseId] })).leases).toHaveLength(1);
    await eventually(async () => expect(await roleIsThere(site, role)).toBe(false), 30_000);
    await expectSettled(site.estate, taskId);
    expect((await site.operator.getLease({ leaseId })).lease!.settlement!.abandonedBy).toBe('');
  },
);

test('what has no trouble is left alone by a retry, and a retry says exactly what it is for', async () => {
  const { leaseId } = (await site.issue()).lease;
  expect((await site.operator.retrySettlement({ leaseIds: [leaseId] })).leases).toEqual([]);
  expect(await leaseRow(site, leaseId)).toMatchObject({ state: 'active' });
  for (const request of [{}, { troubled: true, leaseIds: [leaseId] }]) {
    expect(await refusalOf(site.operator.retrySettlement(request))).toMatchObject({ reason: 'FIELD_INVALID' });
  }
});

test('an auditor sees a lease and changes nothing', async () => {
  const { leaseId } = (await site.issue()).lease;
  const auditor = site.estate.client(SettlementService, 'auditor');
  expect((await auditor.getLease({ leaseId })).lease!.settlement!.target).toBe('warehouse');
  for (const call of [
    auditor.retrySettlement({ leaseIds: [leaseId] }),
    auditor.abandonLease({ leaseId, reason }),
    (async () => {
      for await (const step of auditor.reconcile({ settle: true })) void step;
    })(),
  ]) {
    expect(await refusalOf(call)).toMatchObject({ reason: 'ROLE_REQUIRED' });
  }
});
