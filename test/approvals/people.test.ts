import { createHmac, randomBytes } from 'node:crypto';
import { createServer, type IncomingHttpHeaders, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ApprovalKind, ApprovalState, Verdict } from '../../src/gen/leasehold/v1/approval_service_pb.js';
import { devWorkload } from '../../src/dev/environment.ts';
import { auditOf, editPolicy, held, ms, refusal, sql } from '../e2e/support.ts';
import { approve, askFor, look, openTask, people, refund, serve, shut, turn, type Served } from './support.ts';

interface Delivery {
  headers: IncomingHttpHeaders;
  body: string;
  path: string;
}

/** A real receiver. `answers` are given in turn, then 204. */
async function receiver(answers: { status: number; headers?: Record<string, string> }[]) {
  const deliveries: Delivery[] = [];
  const server: Server = createServer((request, response) => {
    let body = '';
    request.setEncoding('utf8').on('data', (chunk: string) => (body += chunk));
    request.on('end', () => {
      deliveries.push({ headers: request.headers, body, path: request.url ?? '' });
      const { status, headers = {} } = answers.shift() ?? { status: 204 };
      response.writeHead(status, headers).end();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}/hooks/leasehold?team=a`,
    port,
    answers,
    deliveries,
    stop: () =>
      new Promise<void>((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

/** Standard Webhooks, said anew: what a receiver's own library does. */
function verified({ headers, body }: Delivery, secret: Uint8Array): boolean {
  const id = headers['webhook-id'] as string;
  const timestamp = headers['webhook-timestamp'] as string;
  expect(Math.abs(Date.now() / 1_000 - Number(timestamp))).toBeLessThan(60);
  const expected = createHmac('sha256', secret).update(`${id}.${timestamp}.${body}`).digest('base64');
  return (headers['webhook-signature'] as string).split(' ').includes(`v1,${expected}`);
}

const typesAbout = (deliveries: Delivery[], taskId: string) =>
  deliveries.filter(({ body }) => body.includes(taskId)).map(({ body }) => (JSON.parse(body) as { type: string }).type);

let served: Served;
let hook: Awaited<ReturnType<typeof receiver>>;
let other: Awaited<ReturnType<typeof receiver>>;
let dir: string;
const secret = randomBytes(32);
const previous = randomBytes(32);

beforeAll(async () => {
  dir = await mkdtemp(path.join(tmpdir(), 'leasehold-hooks-'));
  const secretFile = path.join(dir, 'hook-secret');
  await writeFile(secretFile, `whsec_${secret.toString('base64')}\n`, { mode: 0o600 });
  const previousSecretFile = path.join(dir, 'previous-secret');
  await writeFile(previousSecretFile, `whsec_${previous.toString('base64')}\n`, { mode: 0o600 });
  hook = await receiver([]);
  other = await receiver([]);
  const webhooks = [
    { name: 'chat', url: hook.url, secretFile, timeout: '2s' },
    { name: 'other', url: other.url, secretFile, previousSecretFile, timeout: '2s' },
  ];
  served = await serve(
    'people',
    { webhooks, maxPending: 3, requestsPerHour: 40 },
    {
      // The agent and the orchestrator hold the role here: being the requester is what is in their way.
      access: [
        { workloads: [devWorkload('orchestrator')], roles: ['orchestrator', 'approver'] },
        { workloads: [devWorkload('agent/analyst')], roles: ['approver'] },
        { workloads: [devWorkload('operator')], roles: ['operator'] },
        { workloads: [devWorkload('auditor')], roles: ['auditor'] },
        { workloads: [devWorkload('approver/*')], roles: ['approver'] },
      ],
    },
  );
});
afterAll(async () => {
  await served.stop();
  await hook.stop();
  await other.stop();
  await rm(dir, { recursive: true, force: true });
});

test('whoever asks never approves, with the role and in the group that is named', async () => {
  const taskId = await openTask(served);
  const { name } = await askFor(served, { taskId, ...turn });
  for (const workload of ['agent/analyst', 'orchestrator']) {
    expect(await refusal(approve(served, workload, name))).toMatchObject({
      code: 'PermissionDenied',
      reason: 'APPROVER_INELIGIBLE',
    });
  }
  const { approval } = await served.approvals(people.guard).getApproval({ approvalId: name });
  expect(approval).toMatchObject({ state: ApprovalState.PENDING, votes: [] });
});

describe('people are told', () => {
  test('of a request and of its outcome, signed, at every endpoint, without the text of the task', async () => {
    const taskId = await openTask(served, { intent: 'SECRET-INTENT-4711' });
    const { name } = await askFor(served, { taskId, ...look, justification: 'SECRET-WHY-4712' });
    await expect.poll(() => typesAbout(hook.deliveries, taskId), { timeout: 10_000 }).toEqual(['approval.requested']);
    await approve(served, people.owner, name, 'SECRET-COMMENT-4713');
    await expect
      .poll(() => typesAbout(hook.deliveries, taskId), { timeout: 10_000 })
      .toEqual(['approval.requested', 'approval.approved']);
    await expect.poll(() => typesAbout(other.deliveries, taskId), { timeout: 10_000 }).toHaveLength(2);

    const [delivery] = hook.deliveries.filter(({ body }) => body.includes(taskId)) as [Delivery];
    expect(verified(delivery, secret)).toBe(true);
    expect(verified({ ...delivery, body: `${delivery.body} ` }, secret)).toBe(false);
    expect(delivery.headers['content-type']).toBe('application/json');
    expect(delivery.path).toBe('/hooks/leasehold?team=a');
    expect(JSON.parse(delivery.body)).toMatchObject({
      type: 'approval.requested',
      data: { task: taskId, agent: 'analyst', approvals: [{ approval: name, tool: 'vault-door', tier: 'read' }] },
    });
    for (const { body } of hook.deliveries) expect(body).not.toContain('SECRET-');
  });

  test('again, with the same id and bytes, until the endpoint takes it; a redirect is not followed', async () => {
    const taskId = await openTask(served);
    const seen = other.deliveries.length;
    hook.answers.push({ status: 500 }, { status: 302, headers: { location: `http://127.0.0.1:${other.port}/stolen` } });
    await askFor(served, { taskId, ...look });
    await expect.poll(() => typesAbout(hook.deliveries, taskId).length, { timeout: 20_000 }).toBe(3);
    const tries = hook.deliveries.filter(({ body }) => body.includes(taskId));
    expect(new Set(tries.map(({ headers }) => headers['webhook-id'])).size).toBe(1);
    expect(new Set(tries.map(({ body }) => body)).size).toBe(1);
    for (const delivery of tries) expect(verified(delivery, secret)).toBe(true);
    expect(other.deliveries.slice(seen).map(({ path: where }) => where)).not.toContain('/stolen');
    await expect
      .poll(async () =>
        sql(
          served.estate.databaseUrl,
          `SELECT attempts, delivered_at IS NOT NULL AS delivered FROM leasehold.notifications
           WHERE endpoint = 'chat' AND payload LIKE '%' || $1 || '%'`,
          [taskId],
        ),
      )
      .toEqual([{ attempts: 3, delivered: true }]);
    expect(served.log.join('')).toContain('notify.failed');
  });

  test('one time for a batch, and not again for the same request of another task', async () => {
    const [first, second, third] = [await openTask(served), await openTask(served), await openTask(served)];
    await served.approvals('orchestrator').requestApprovals({ taskId: first, actions: [look, turn, refund] });
    await expect.poll(() => typesAbout(hook.deliveries, first), { timeout: 10_000 }).toEqual(['approval.requested']);
    const [delivery] = hook.deliveries.filter(({ body }) => body.includes(first)) as [Delivery];
    expect((JSON.parse(delivery.body) as { data: { approvals: object[] } }).data.approvals).toHaveLength(3);
    // In a group of its own, because the batch is of several things; the third task's is like the second's.
    await askFor(served, { taskId: second, ...refund });
    const { name } = await askFor(served, { taskId: third, ...refund });
    const rows = await sql(
      served.estate.databaseUrl,
      `SELECT FROM leasehold.notifications WHERE payload LIKE '%' || $1 || '%'`,
      [name],
    );
    expect(rows).toEqual([]);
  });
});

test('what a task below will do is told with whose it is', async () => {
  await editPolicy(served, 'agents.yaml', (text) =>
    text.replace(/^ {2}workloads: \[.*\/analyst\]$/m, '$&\n  delegation: { to: [twin] }'),
  );
  const taskId = await openTask(served);
  const { results } = await served
    .approvals('orchestrator')
    .requestApprovals({ taskId, actions: [{ ...look, agent: 'twin' }] });
  const name = results[0]!.approval!.approvalId;
  await expect.poll(() => typesAbout(hook.deliveries, taskId), { timeout: 10_000 }).toEqual(['approval.requested']);
  const [delivery] = hook.deliveries.filter(({ body }) => body.includes(taskId)) as [Delivery];
  expect(JSON.parse(delivery.body)).toMatchObject({
    data: { task: taskId, agent: 'analyst', approvals: [{ approval: name, kind: 'for_child', for_agent: 'twin' }] },
  });
});

test('while a secret is being replaced, messages are signed with both', async () => {
  const taskId = await openTask(served);
  await askFor(served, { taskId, ...refund, arguments: { amount: 321 } });
  const about = ({ deliveries }: typeof hook) => deliveries.filter(({ body }) => body.includes(taskId));
  await expect.poll(() => [about(hook).length, about(other).length], { timeout: 10_000 }).toEqual([1, 1]);
  const [one, both] = [about(hook)[0]!, about(other)[0]!];
  expect([verified(one, secret), verified(one, previous)]).toEqual([true, false]);
  expect([verified(both, secret), verified(both, previous)]).toEqual([true, true]);
});

test('a request that ran out is told of once, whoever notices it first', async () => {
  const taskId = await openTask(served);
  const { name } = await askFor(served, { taskId, ...refund, arguments: { amount: 322 } });
  await sql(
    served.estate.databaseUrl,
    `UPDATE leasehold.approvals SET decide_by = now() - interval '1 s' WHERE approval_id = $1`,
    [name],
  );
  // The next request of the task clears it away, if the worker was not there before.
  await askFor(served, { taskId, ...refund, arguments: { amount: 323 } });
  await expect.poll(() => typesAbout(hook.deliveries, taskId), { timeout: 10_000 }).toContain('approval.timed_out');
  await expect.poll(() => typesAbout(hook.deliveries, taskId).length, { timeout: 10_000 }).toBe(3);
  expect(typesAbout(hook.deliveries, taskId).filter((type) => type === 'approval.timed_out')).toHaveLength(1);
});

test('a task cannot have people look at more than a few requests at once', async () => {
  const taskId = await openTask(served);
  await served.approvals('orchestrator').requestApprovals({ taskId, actions: [look, turn, refund] });
  await sql(
    served.estate.databaseUrl,
    `UPDATE leasehold.approvals SET arguments_digest = 'sha256:other' WHERE task_id = $1 AND tier = 'read'`,
    [taskId],
  );
  const before = await sql(served.estate.databaseUrl, 'SELECT FROM leasehold.approvals WHERE task_id = $1', [taskId]);
  expect((await askFor(served, { taskId, ...look })).refused).toMatchObject({
    code: 'ResourceExhausted',
    reason: 'RATE_LIMITED',
  });
  const after = await sql(served.estate.databaseUrl, 'SELECT FROM leasehold.approvals WHERE task_id = $1', [taskId]);
  expect(after).toHaveLength(before.length);
});

describe('break-glass', () => {
  const reason = 'The shop is on fire and the owner is asleep.';

  test('lets two people set a deny aside for half an hour, for one task, tool and tier, and everybody hears of it', async () => {
    const taskId = await openTask(served);
    expect((await askFor(served, { taskId, ...shut })).refused.reason).toBe('POLICY_DENIED');
    const { approval } = await served.approvals(people.guard).breakGlass({ taskId, ...shut, reason });
    expect(approval).toMatchObject({ kind: ApprovalKind.BREAK_GLASS, state: ApprovalState.PENDING, reason });
    const approvalId = approval!.approvalId;
    // One person is not two, however often.
    expect((await approve(served, people.guard, approvalId)).state).toBe(ApprovalState.PENDING);
    expect((await served.approvals(people.guard).breakGlass({ taskId, ...shut, reason })).approval).toMatchObject({
      approvalId,
      state: ApprovalState.PENDING,
    });
    expect((await askFor(served, { taskId, ...shut })).refused.reason).toBe('POLICY_DENIED');

    const agreed = await approve(served, people.clerk, approvalId, 'I see the smoke');
    expect(agreed.state).toBe(ApprovalState.APPROVED);
    expect(ms(agreed.expireTime) - Date.now()).toBeGreaterThan(29 * 60_000);
    expect(ms(agreed.expireTime) - Date.now()).toBeLessThanOrEqual(30 * 60_000);
    const { lease } = held(await served.agent.issueCredential({ taskId, ...shut }));
    expect(lease).toMatchObject({ tool: 'shop', policyRule: 'people/never' });
    held(await served.agent.issueCredential({ taskId, ...shut }));

    // Not for another task, nor for another tool of this one.
    const another = await openTask(served);
    expect((await askFor(served, { taskId: another, ...shut })).refused.reason).toBe('POLICY_DENIED');
    expect((await askFor(served, { taskId, ...refund })).refused.reason).toBe('APPROVAL_REQUIRED');

    const events = await auditOf(served, taskId);
    expect(events.filter(({ kind }) => kind.startsWith('approval.break_glass'))).toMatchObject([
      { kind: 'approval.break_glass_requested', actor: devWorkload(people.guard), detail: { reason } },
      {
        kind: 'approval.break_glass',
        actor: devWorkload(people.clerk),
        detail: { reason, break_glass: true, approvers: [devWorkload(people.guard), devWorkload(people.clerk)] },
      },
    ]);
    expect(events.filter(({ kind }) => kind === 'approval.used')).toMatchObject([
      { detail: { approval: approvalId, break_glass: true } },
      { detail: { approval: approvalId, break_glass: true } },
    ]);
    const loud = served.log.map((line) => JSON.parse(line) as { event: string; level: string });
    expect(loud.filter(({ event }) => event === 'approval.break_glass')).toMatchObject([{ level: 'error' }]);
    await expect
      .poll(() => typesAbout(hook.deliveries, taskId), { timeout: 20_000 })
      .toEqual(expect.arrayContaining(['approval.break_glass_requested', 'approval.break_glass']));
  });

  test('widens nothing, and is for nobody who asks for the work', async () => {
    const narrow = await openTask(served, { tools: [look] });
    expect(await refusal(served.approvals(people.guard).breakGlass({ taskId: narrow, ...shut, reason }))).toMatchObject(
      {
        reason: 'FIELD_INVALID',
        fields: ['tool'],
      },
    );
    for (const workload of ['orchestrator', 'agent/analyst']) {
      expect(await refusal(served.approvals(workload).breakGlass({ taskId: narrow, ...look, reason }))).toMatchObject({
        reason: 'APPROVER_INELIGIBLE',
      });
    }
    expect(
      await refusal(served.approvals(people.guard).breakGlass({ taskId: narrow, ...look, reason: 'because' })),
    ).toMatchObject({ reason: 'FIELD_INVALID', fields: ['reason'] });
    const { approval } = await served.approvals(people.guard).breakGlass({ taskId: narrow, ...look, reason });
    const { approvalId } = approval!;
    expect(await refusal(approve(served, 'orchestrator', approvalId))).toMatchObject({ reason: 'APPROVER_INELIGIBLE' });
    const denied = await served.approvals(people.clerk).decideApproval({ approvalId, verdict: Verdict.DENY });
    expect(denied.approval!.state).toBe(ApprovalState.DENIED);
  });
});
