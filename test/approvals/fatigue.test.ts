import { afterAll, beforeAll, expect, test } from 'vitest';
import { ReportService } from '../../src/gen/leasehold/v1/report_service_pb.js';
import { sql } from '../e2e/support.ts';
import { approve, askFor, deny, look, open, openTask, people, refund, serve, turn, type Served } from './support.ts';

let served: Served;
beforeAll(async () => {
  served = await serve('fatigue', { requestsPerHour: 3, maxPending: 3 });
});
afterAll(() => served.stop());

const requests = async () =>
  await sql(served.estate.databaseUrl, 'SELECT approval_id FROM leasehold.approvals ORDER BY approval_id');
const hourLater = () =>
  sql(served.estate.databaseUrl, `UPDATE leasehold.approvals SET requested_at = requested_at - interval '1 hour'`);

test('an agent asks people so many times an hour, over all its tasks, and again when the hour is over', async () => {
  const first = await openTask(served);
  const second = await openTask(served);
  expect((await askFor(served, { taskId: first, ...look })).refused.reason).toBe('APPROVAL_REQUIRED');
  expect((await askFor(served, { taskId: first, ...turn })).refused.reason).toBe('APPROVAL_REQUIRED');
  expect((await askFor(served, { taskId: second, ...open })).refused.reason).toBe('APPROVAL_REQUIRED');
  // What is asked already is no further question.
  expect((await askFor(served, { taskId: first, ...look })).refused.reason).toBe('APPROVAL_REQUIRED');

  const before = await requests();
  const { refused } = await askFor(served, { taskId: second, ...refund, arguments: { amount: 7 } });
  expect(refused).toMatchObject({ code: 'ResourceExhausted', reason: 'RATE_LIMITED' });
  expect(refused.message).toContain('has asked people 3 times within the hour');
  // Asking for everything at once is one way out for an orchestrator, and no way around.
  const batch = served.approvals('orchestrator').requestApprovals({ taskId: second, actions: [refund] });
  await expect(batch).rejects.toThrow(/3 times within the hour/);
  expect(await requests()).toEqual(before);

  // An emergency is not held up by it.
  const emergency = await served
    .approvals(people.guard)
    .breakGlass({ taskId: second, tool: 'shop', tier: refund.tier, reason: 'the shop is on fire, truly' });
  expect(emergency.approval!.approvalId).toMatch(/^apr_/);

  await hourLater();
  expect((await askFor(served, { taskId: second, ...refund, arguments: { amount: 7 } })).refused.reason).toBe(
    'APPROVAL_REQUIRED',
  );
});

test('a report counts approvals by their outcome, with the median time that people took', async () => {
  await hourLater();
  const reports = served.estate.client(ReportService, 'auditor');
  const counted = async () =>
    Object.fromEntries(
      (await reports.getReport({})).approvals.map((one) => [one.outcome, [one.count, one.medianLatency?.seconds]]),
    );
  const before = await counted();
  const taskId = await openTask(served);
  const asked: string[] = [];
  for (const amount of [11, 12, 13])
    asked.push((await askFor(served, { taskId, ...refund, arguments: { amount } })).name);
  const [used, denied, waiting] = asked as [string, string, string];
  await approve(served, people.clerk, used);
  await served.agent.issueCredential({ taskId, ...refund, arguments: { amount: 11 } });
  await deny(served, people.clerk, denied);
  // As if people had looked at it after two minutes, and at the other after four.
  await sql(
    served.estate.databaseUrl,
    `UPDATE leasehold.approvals SET requested_at = decided_at - CASE approval_id WHEN $1 THEN interval '2 min' ELSE interval '4 min' END
     WHERE approval_id IN ($1, $2)`,
    [used, denied],
  );

  const after = await counted();
  expect(after['approved']).toEqual([1n, 120n]);
  expect(after['denied']).toEqual([1n, 240n]);
  expect(after['pending']![0]).toBe((before['pending']?.[0] ?? 0n) + 1n);
  expect(waiting).toMatch(/^apr_/);
});
