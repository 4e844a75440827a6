import { randomUUID } from 'node:crypto';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { AuditService } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import type { Served } from './support.ts';
import {
  analystId,
  auditOf,
  held,
  loginOf,
  ms,
  openTask,
  orchestratorId,
  refusal,
  reportsRead,
  serve,
  sql,
  tokenOf,
  warehouseRead,
  warehouseWrite,
} from './support.ts';

let served: Served;
beforeAll(async () => {
  served = await serve('audit');
});
afterAll(() => served.stop());

test('the events of a task tell its whole life in order, with who acted and the particulars', async () => {
  const { taskId, policyRevision } = await openTask(served, [reportsRead, warehouseRead, warehouseWrite], {
    intent: 'tell a story',
    context: { a: 'b' },
  });
  const token = held(
    await served.agent.issueCredential({ taskId, ...reportsRead, justification: 'to read the reports' }),
  );
  const again = { requestId: randomUUID(), taskId, ...warehouseRead };
  const login = held(await served.agent.issueCredential(again));
  const repeated = held(await served.agent.issueCredential(again));
  await refusal(served.agent.issueCredential({ taskId, ...warehouseWrite }));
  const renewed = held(await served.agent.renewCredential({ leaseId: token.lease.leaseId }));
  const deadline = timestampFromMs(Date.now() + 1_800_000);
  await served.tasks.extendTask({ taskId, deadline, justification: 'a little longer' });
  await served.agent.returnCredential({ leaseId: renewed.lease.leaseId });
  // The renewed one goes after its overlap.
  await expect
    .poll(async () => (await auditOf(served, taskId)).filter(({ kind }) => kind === 'lease.settled').length, {
      timeout: 10_000,
    })
    .toBe(2);
  await served.tasks.closeTask({ taskId, wait: true, justification: 'the story is told' });
  await refusal(served.agent.issueCredential({ taskId, ...reportsRead }));

  const events = await auditOf(served, taskId);
  const lease = (one: { lease: { leaseId: string } }) => one.lease.leaseId;
  const expires = (one: typeof token) => new Date(ms(one.lease.expireTime)).toISOString();
  const allow = { effect: 'allow', rule: 'analyst/read', policy_revision: policyRevision, ttl_ms: 600_000 };
  const read = { tier: 'read' };
  const reports = { tool: 'reports', ...read };
  const warehouse = { tool: 'warehouse', ...read };
  const agent = { actor: analystId };
  expect(events).toMatchObject([
    {
      kind: 'task.opened',
      actor: orchestratorId,
      leaseId: '',
      detail: {
        intent: 'tell a story',
        agent: 'analyst',
        context: { a: 'b' },
        policy_revision: policyRevision,
        plan: [
          { ...reports, effect: 'allow' },
          { ...warehouse, effect: 'allow' },
          { tool: 'warehouse', tier: 'write', effect: 'deny', rule: 'analyst/write-needs-change-ticket' },
        ],
      },
    },
    { kind: 'task.agent_pinned', ...agent, detail: { workload: analystId } },
    {
      kind: 'decision.made',
      ...agent,
      leaseId: lease(token),
      detail: { ...reports, ...allow, justification: 'to read the reports' },
    },
    {
      kind: 'lease.issued',
      ...agent,
      leaseId: lease(token),
      detail: { ...reports, provider: 'jwt', expires_at: expires(token) },
    },
    { kind: 'decision.made', ...agent, leaseId: lease(login), detail: { ...warehouse, ...allow } },
    {
      kind: 'lease.issued',
      ...agent,
      leaseId: lease(login),
      detail: { ...warehouse, provider: 'postgres', expires_at: expires(login) },
    },
    { kind: 'lease.reissued', ...agent, leaseId: lease(login), detail: { request_id: again.requestId } },
    { kind: 'decision.made', ...agent, leaseId: '', detail: { tool: 'warehouse', tier: 'write', effect: 'deny' } },
    { kind: 'lease.denied', ...agent, leaseId: '', detail: { tool: 'warehouse', tier: 'write' } },
    { kind: 'decision.made', ...agent, leaseId: lease(renewed), detail: { ...reports, ...allow, renewal: 1 } },
    { kind: 'lease.renewed', ...agent, leaseId: lease(renewed), detail: { ...reports, renewed_from: lease(token) } },
    { kind: 'task.extended', actor: orchestratorId, detail: { justification: 'a little longer' } },
    { kind: 'lease.returned', ...agent, leaseId: lease(renewed), detail: reports },
    {
      kind: 'lease.settled',
      actor: 'broker',
      leaseId: lease(renewed),
      detail: { outcome: 'returned', cause: 'returned' },
    },
    {
      kind: 'lease.settled',
      actor: 'broker',
      leaseId: lease(token),
      detail: { outcome: 'revoked', cause: 'superseded' },
    },
    { kind: 'task.closed', actor: orchestratorId, detail: { cause: 'requested', justification: 'the story is told' } },
    { kind: 'lease.settled', actor: 'broker', leaseId: lease(login), detail: { outcome: 'revoked', cause: 'closed' } },
    { kind: 'task.settled', actor: 'broker', detail: { state: 'closed' } },
    { kind: 'decision.made', ...agent, leaseId: '', detail: { effect: 'deny', reason: 'the task has ended' } },
    { kind: 'lease.denied', ...agent, leaseId: '' },
  ]);
  for (const event of events) expect(event.taskId).toBe(taskId);
  expect(lease(repeated)).toBe(lease(login));

  const told = JSON.stringify(await sql(served.estate.databaseUrl, 'SELECT * FROM leasehold.audit_events'));
  for (const secret of [tokenOf(token), tokenOf(renewed), loginOf(login).password, loginOf(repeated).password]) {
    expect(told).not.toContain(secret);
  }
});

describe('of issues that are committed together', () => {
  test('each has its decision before its issue, and there is no event without its lease nor lease without its events', async () => {
    const { taskId } = await openTask(served, [reportsRead, warehouseWrite]);
    const issued = await Promise.all(
      Array.from({ length: 48 }, async (_, index) => {
        if (index % 6 === 5)
          return await refusal(served.agent.issueCredential({ taskId, ...warehouseWrite })).then(() => undefined);
        return held(await served.agent.issueCredential({ taskId, ...reportsRead })).lease.leaseId;
      }),
    );
    const leases = issued.filter((one) => one !== undefined);
    const byLease = async () => {
      const events = await auditOf(served, taskId);
      return (leaseId: string) => events.filter((event) => event.leaseId === leaseId).map(({ kind }) => kind);
    };
    const now = await byLease();
    for (const leaseId of leases) expect(now(leaseId)).toEqual(['decision.made', 'lease.issued']);
    expect(now('').filter((kind) => kind === 'lease.denied')).toHaveLength(8);
    await served.tasks.closeTask({ taskId, wait: true });
    const then = await byLease();
    for (const leaseId of leases) expect(then(leaseId)).toEqual(['decision.made', 'lease.issued', 'lease.settled']);
  });

  test('the events of the whole database agree with its leases', async () => {
    const strays = await sql(
      served.estate.databaseUrl,
      `SELECT e.* FROM leasehold.audit_events e LEFT JOIN leasehold.leases l USING (tenant, lease_id)
       WHERE e.lease_id IS NOT NULL AND (l.lease_id IS NULL OR l.task_id <> e.task_id)`,
    );
    expect(strays).toEqual([]);
    const silent = await sql(
      served.estate.databaseUrl,
      `SELECT l.lease_id FROM leasehold.leases l WHERE
        (SELECT count(*) FROM leasehold.audit_events e WHERE e.lease_id = l.lease_id AND e.kind IN ('lease.issued', 'lease.renewed')) <> 1
        OR (SELECT count(*) FROM leasehold.audit_events e WHERE e.lease_id = l.lease_id AND e.kind = 'lease.settled')
          <> (l.state = 'settled')::int`,
    );
    expect(silent).toEqual([]);
  });
});

test('the events page in a stable order, and a page token is good for the same task only in its own order', async () => {
  const { taskId } = await openTask(served, [reportsRead]);
  for (let index = 0; index < 4; index++) await served.agent.issueCredential({ taskId, ...reportsRead });
  const first = await served.audit.listAuditEvents({ taskId, pageSize: 4 });
  await served.agent.issueCredential({ taskId, ...reportsRead });
  expect(await served.audit.listAuditEvents({ taskId, pageSize: 4 })).toEqual(first);
  const rest = await served.audit.listAuditEvents({ taskId, pageToken: first.nextPageToken });
  expect([...first.events, ...rest.events]).toHaveLength(2 + 5 * 2);
  expect(rest.nextPageToken).toBe('');
  expect(await auditOf(served, taskId)).toEqual([...first.events, ...rest.events]);
});

test('the broker’s own login can add events and neither change nor remove one', async () => {
  const { brokerUrl } = served.estate;
  const refused = { code: '42501' };
  await expect(sql(brokerUrl, 'UPDATE leasehold.audit_events SET actor = $1', ['nobody'])).rejects.toMatchObject(
    refused,
  );
  await expect(sql(brokerUrl, 'DELETE FROM leasehold.audit_events')).rejects.toMatchObject(refused);
  await expect(sql(brokerUrl, 'TRUNCATE leasehold.audit_events')).rejects.toMatchObject(refused);
});

test('an agent may not read the events of its own task', async () => {
  const { taskId } = await openTask(served, [reportsRead]);
  const audit = served.estate.client(AuditService, 'agent/analyst');
  expect(await refusal(audit.listAuditEvents({ taskId }))).toMatchObject({
    code: 'PermissionDenied',
    reason: 'ROLE_REQUIRED',
  });
});
