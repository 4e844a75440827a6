import { randomUUID } from 'node:crypto';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { devWorkload } from '../../src/dev/environment.ts';
import { Verdict } from '../../src/gen/leasehold/v1/approval_service_pb.js';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { held, loginOf, loginRefusal, ms, refusal, roleExists, sql } from '../e2e/support.ts';
import { access, openChild, openRoot, rolesAtTarget, startEstate, type Estate } from './support.ts';

/**
 * What a task below another tries in order to get more than it was handed. Each attempt is refused with its own reason,
 * and the databases say that nothing came of it: no task, no lease, no role at the target.
 */

const chief = 'agent/chief/1';
const aide = 'agent/aide/1';
const sales = { tool: 'sales', tier: Tier.READ };
const north = { arguments: { region: 'north' } };

let estate: Estate;
beforeAll(async () => {
  estate = await startEstate('escalate', {
    documents: ['batch.yaml'],
    groups: { guards: [devWorkload('approver/gus')] },
  });
});
afterAll(() => estate.stop());

const openParent = () => openRoot(estate, 'chief', { tools: [sales, access.reports, access.settle] });
const openAide = (parent: string, change: object = {}, opener = chief) =>
  openChild(estate, opener, parent, {
    agent: 'aide',
    agentWorkload: devWorkload(aide),
    tools: [sales],
    ...change,
  });
const issue = (workload: string, taskId: string, wanted: object = {}, port?: number) =>
  estate
    .credentials(workload, port)
    .issueCredential({ requestId: randomUUID(), taskId, ...sales, ...north, ...wanted });

async function withApproval(workload: string, taskId: string) {
  const { metadata } = await refusal(issue(workload, taskId));
  const approvalId = metadata['approval']!;
  await estate.approvals('approver/gus').decideApproval({ approvalId, verdict: Verdict.APPROVE });
  return approvalId;
}

async function everything() {
  const broker = estate.estate.databaseUrl;
  return {
    tasks: await sql(broker, 'SELECT tenant, task_id FROM leasehold.tasks ORDER BY 1, 2'),
    leases: await sql(broker, 'SELECT lease_id, state, outcome FROM leasehold.leases ORDER BY 1'),
    uses: await sql(broker, 'SELECT lease_id FROM leasehold.approval_uses ORDER BY 1'),
    roles: await rolesAtTarget(estate.estate),
  };
}

/** Refused, and all that is kept and all that is at the target is as before. */
async function leavesNoTrace(attempt: () => Promise<unknown>) {
  const before = await everything();
  const refused = await refusal(attempt());
  expect(await everything()).toEqual(before);
  return refused;
}

test('a higher tier, or another tool, than its parent has', async () => {
  const parent = await openParent();
  const child = await openAide(parent.taskId);
  for (const wanted of [{ tool: 'sales', tier: Tier.WRITE }, access.warehouse]) {
    expect(await leavesNoTrace(() => openAide(parent.taskId, { tools: [sales, wanted] }))).toMatchObject({
      reason: 'DELEGATION_REFUSED',
      metadata: { because: 'tool' },
      fields: ['tools[1]'],
    });
    const ask = () => issue(aide, child.taskId, { ...wanted, arguments: {} });
    expect(await leavesNoTrace(ask)).toMatchObject({ reason: 'POLICY_DENIED' });
  }
});

test('a tool that its parent has and that it was not handed itself', async () => {
  const parent = await openParent();
  const child = await openAide(parent.taskId);
  const refused = await leavesNoTrace(() => issue(aide, child.taskId, { ...access.reports, arguments: {} }));
  expect(refused).toMatchObject({ reason: 'POLICY_DENIED' });
  expect(refused.message).toContain('did not ask for');
});

test('a longer life than its parent’s, at its opening, afterwards, or by a credential', async () => {
  const soon = Date.now() + 90_000;
  const parent = await openRoot(estate, 'chief', { tools: [sales], deadline: timestampFromMs(soon) });
  const child = await openAide(parent.taskId);
  for (const [change, field] of [
    [{ deadline: timestampFromMs(soon + 1_000) }, 'deadline'],
    [{ ttl: { seconds: 600n } }, 'ttl'],
  ] as const) {
    expect(await leavesNoTrace(() => openAide(parent.taskId, change))).toMatchObject({
      reason: 'FIELD_INVALID',
      fields: [field],
    });
  }
  const later = { taskId: child.taskId, deadline: timestampFromMs(soon + 1_000) };
  expect(await leavesNoTrace(() => estate.tasks(chief).extendTask(later))).toMatchObject({ reason: 'FIELD_INVALID' });
  await withApproval(aide, child.taskId);
  const { lease, credential } = held(await issue(aide, child.taskId));
  expect(ms(lease.expireTime)).toBeLessThanOrEqual(soon);
  // The target itself lets it in no longer.
  const { username } = loginOf({ lease, credential });
  const [role] = await sql(estate.estate.targetUrl, 'SELECT rolvaliduntil FROM pg_roles WHERE rolname = $1', [
    username,
  ]);
  expect((role!['rolvaliduntil'] as Date).getTime()).toBeLessThanOrEqual(soon);
});

test('its parent’s approval', async () => {
  const root = await openParent();
  const parent = await openAide(root.taskId);
  const approval = await withApproval(aide, parent.taskId);
  const other = 'agent/aide/2';
  const child = await openAide(parent.taskId, { agentWorkload: devWorkload(other) }, aide);
  expect(await leavesNoTrace(() => issue(other, child.taskId, { approval }))).toMatchObject({
    reason: 'APPROVAL_NOT_FOUND',
  });
  // The same workload below itself is told that it is another task's.
  const own = await openAide(parent.taskId, {}, aide);
  expect(await leavesNoTrace(() => issue(aide, own.taskId, { approval }))).toMatchObject({
    reason: 'APPROVAL_MISMATCH',
    metadata: { differs: 'task' },
  });
  expect((await leavesNoTrace(() => issue(aide, own.taskId))).reason).toBe('APPROVAL_REQUIRED');
});

test('the lease of a task beside it', async () => {
  const parent = await openParent();
  const first = await openAide(parent.taskId);
  const other = 'agent/aide/2';
  const beside = await openAide(parent.taskId, { agentWorkload: devWorkload(other) });
  await withApproval(aide, first.taskId);
  const requestId = randomUUID();
  const login = loginOf(held(await issue(aide, first.taskId, { requestId })));
  const [{ lease_id: leaseId }] = (await sql(
    estate.estate.databaseUrl,
    'SELECT lease_id FROM leasehold.leases WHERE task_id = $1',
    [first.taskId],
  )) as [{ lease_id: string }];
  const credentials = estate.credentials(other);
  for (const attempt of [
    () => credentials.renewCredential({ requestId: randomUUID(), leaseId }),
    () => credentials.returnCredential({ requestId: randomUUID(), leaseId }),
  ]) {
    expect(await leavesNoTrace(attempt)).toMatchObject({ reason: 'LEASE_NOT_FOUND' });
  }
  // Neither by the name of the call that made it, in its own task or in that of the other.
  expect((await leavesNoTrace(() => issue(other, beside.taskId, { requestId }))).reason).toBe('APPROVAL_REQUIRED');
  expect((await leavesNoTrace(() => issue(other, first.taskId, { requestId }))).reason).toBe('TASK_NOT_FOUND');
  expect(await loginRefusal(login)).toBeUndefined();
});

test('itself as its parent: by its own agent, or by a row that somebody tampered with', async () => {
  const parent = await openParent();
  const again = () => openChild(estate, chief, parent.taskId, { agent: 'chief', agentWorkload: '', tools: [sales] });
  expect(await leavesNoTrace(again)).toMatchObject({ reason: 'DELEGATION_REFUSED', metadata: { because: 'agent' } });

  const child = await openAide(parent.taskId);
  const broker = estate.estate.databaseUrl;
  const parentOf = (taskId: string, above: string | null) =>
    sql(broker, 'UPDATE leasehold.tasks SET parent_task_id = $2 WHERE task_id = $1', [taskId, above]);
  // Neither has been seen by the second replica.
  const port = estate.ports[1];
  for (const [below, above] of [
    [parent.taskId, child.taskId],
    [child.taskId, child.taskId],
  ] as const) {
    await parentOf(below, above);
    const refused = await leavesNoTrace(() => issue(aide, child.taskId, {}, port));
    expect(refused.code).toBe('Internal');
    await parentOf(parent.taskId, null);
    await parentOf(child.taskId, parent.taskId);
  }
});

test('a closed parent', async () => {
  const parent = await openParent();
  const child = await openAide(parent.taskId);
  const approval = await withApproval(aide, child.taskId);
  await estate.tasks('orchestrator').closeTask({ taskId: parent.taskId, wait: true });
  expect(await leavesNoTrace(() => openAide(parent.taskId))).toMatchObject({ reason: 'TASK_CLOSED' });
  for (const port of estate.ports) {
    expect(await leavesNoTrace(() => issue(aide, child.taskId, { approval }, port))).toMatchObject({
      reason: 'TASK_CLOSED',
    });
  }
});

test('a parent in another tenant', async () => {
  const parent = await openParent();
  const elsewhere = parent.taskId.replace(/.$/, (digit) => (digit === '0' ? '1' : '0'));
  // The same in everything but its tenant.
  await sql(
    estate.estate.databaseUrl,
    `INSERT INTO leasehold.tasks (tenant, task_id, root_task_id, request_id, request_digest, intent, agent, opener, agent_workload,
       tools, context, opened_at, deadline)
     SELECT 'acme', $2, $2, request_id, request_digest, intent, agent, opener, agent_workload, tools, context, opened_at, deadline
     FROM leasehold.tasks WHERE task_id = $1`,
    [parent.taskId, elsewhere],
  );
  for (const opener of [chief, 'orchestrator']) {
    expect(await leavesNoTrace(() => openAide(elsewhere, {}, opener))).toMatchObject({ reason: 'TASK_NOT_FOUND' });
  }
  expect(await leavesNoTrace(() => issue(chief, elsewhere))).toMatchObject({ reason: 'TASK_NOT_FOUND' });
  const ahead = { taskId: elsewhere, actions: [{ ...sales, ...north, agent: 'aide' }] };
  expect(await leavesNoTrace(() => estate.approvals(chief).requestApprovals(ahead))).toMatchObject({
    reason: 'TASK_NOT_FOUND',
  });
});

test('and when all of it is over, no lease is without an outcome and no role is left at the target', async () => {
  const parent = await openParent();
  const child = await openAide(parent.taskId);
  await withApproval(aide, child.taskId);
  const { username } = loginOf(held(await issue(aide, child.taskId)));
  expect(await roleExists(estate.estate, username)).toBe(true);
  const broker = estate.estate.databaseUrl;
  const open = await sql(
    broker,
    `SELECT task_id FROM leasehold.tasks WHERE tenant = 'default' AND parent_task_id IS NULL AND state = 'open'`,
  );
  await Promise.all(
    open.map(({ task_id: taskId }) => estate.tasks('operator').closeTask({ taskId: String(taskId), wait: true })),
  );
  await expect
    .poll(() => sql(broker, `SELECT lease_id FROM leasehold.leases WHERE state <> 'settled' OR outcome IS NULL`), {
      timeout: 20_000,
    })
    .toEqual([]);
  expect(await rolesAtTarget(estate.estate)).toEqual([]);
});
