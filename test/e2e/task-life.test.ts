import { randomUUID } from 'node:crypto';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { Code, type ConnectError } from '@connectrpc/connect';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { devWorkload } from '../../src/dev/environment.ts';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { AuditService } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { CloseCause, LeaseOutcome, LeaseState, TaskState } from '../../src/gen/leasehold/v1/common_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import type { Served } from './support.ts';
import {
  auditOf,
  held,
  loginOf,
  ms,
  openTask,
  orchestratorId,
  refusal,
  reportsRead,
  roleExists,
  serve,
  sql,
  tickerRead,
  warehouseRead,
} from './support.ts';

let served: Served;
beforeAll(async () => {
  served = await serve('life', {
    access: [
      { workloads: [orchestratorId, devWorkload('orchestrator-2')], roles: ['orchestrator'] },
      { workloads: [devWorkload('operator')], roles: ['operator'] },
      { workloads: [devWorkload('auditor')], roles: ['auditor'] },
    ] as unknown as object,
  });
});
afterAll(() => served.stop());

const tasksAs = (workload: string) => served.estate.client(TaskService, workload);
const view = async (taskId: string) => await served.tasks.getTask({ taskId });
const issue = async (taskId: string, access = reportsRead) =>
  held(await served.agent.issueCredential({ taskId, ...access }));
const unknownTask = { code: 'NotFound', reason: 'TASK_NOT_FOUND' };

describe('the deadline of a task', () => {
  test('moves later and earlier, and what is issued next follows it', async () => {
    const { taskId, task } = await openTask(served, [reportsRead], { ttl: { seconds: 120n } });
    expect(ms((await issue(taskId)).lease.expireTime)).toBeLessThanOrEqual(ms(task.deadline));
    const later = Date.now() + 3_600_000;
    const extended = await served.tasks.extendTask({ taskId, deadline: timestampFromMs(later), justification: 'more' });
    expect(ms(extended.task!.deadline)).toBe(later);
    expect(extended.task!.epoch).toBeGreaterThan(task.epoch);
    const one = await issue(taskId);
    expect(ms(one.lease.expireTime) - ms(one.lease.issueTime)).toBe(600_000);
    const earlier = Date.now() + 90_000;
    await served.tasks.extendTask({ taskId, deadline: timestampFromMs(earlier) });
    expect(ms((await issue(taskId)).lease.expireTime)).toBeLessThanOrEqual(earlier);
    expect((await auditOf(served, taskId)).filter(({ kind }) => kind === 'task.extended')).toMatchObject([
      { actor: orchestratorId, detail: { to: new Date(later).toISOString(), justification: 'more' } },
      { actor: orchestratorId, detail: { from: new Date(later).toISOString(), to: new Date(earlier).toISOString() } },
    ]);
  });

  test('that is moved to where it is changes nothing', async () => {
    const { taskId, task } = await openTask(served, [reportsRead]);
    expect((await served.tasks.extendTask({ taskId, deadline: task.deadline! })).task).toEqual(task);
    expect((await auditOf(served, taskId)).map(({ kind }) => kind)).toEqual(['task.opened']);
  });

  test('moved to an earlier time ends what was issued for longer', async () => {
    const { taskId } = await openTask(served, [warehouseRead]);
    const one = await issue(taskId, warehouseRead);
    await served.tasks.extendTask({ taskId, deadline: timestampFromMs(Date.now() + 1_000) });
    await expect.poll(() => roleExists(served.estate, loginOf(one).username), { timeout: 15_000 }).toBe(false);
    await expect.poll(async () => (await view(taskId)).task!.state).toBe(TaskState.CLOSED);
    expect(await view(taskId)).toMatchObject({
      task: { closeCause: CloseCause.DEADLINE },
      leases: [{ state: LeaseState.SETTLED, outcome: LeaseOutcome.REVOKED }],
    });
  });

  test.each([
    ['into the past', () => Date.now() - 1_000],
    ['beyond the longest life of a task', () => Date.now() + 25 * 3_600_000],
  ])('is not moved %s', async (_what, to) => {
    const { taskId } = await openTask(served, [reportsRead]);
    expect(await refusal(served.tasks.extendTask({ taskId, deadline: timestampFromMs(to()) }))).toMatchObject({
      code: 'InvalidArgument',
      reason: 'FIELD_INVALID',
      fields: ['deadline'],
    });
    expect(await refusal(served.tasks.extendTask({ taskId }))).toMatchObject({ fields: ['deadline'] });
  });

  test('is not moved by another orchestrator, nor once the task has ended', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const deadline = timestampFromMs(Date.now() + 60_000);
    expect(await refusal(tasksAs('orchestrator-2').extendTask({ taskId, deadline }))).toMatchObject(unknownTask);
    await served.tasks.closeTask({ taskId });
    expect(await refusal(served.tasks.extendTask({ taskId, deadline }))).toMatchObject({ reason: 'TASK_CLOSED' });
  });

  test('closes the task by itself, with an outcome for each of its credentials', async () => {
    const { taskId } = await openTask(served, [tickerRead, warehouseRead, reportsRead], { ttl: { seconds: 2n } });
    const [, login] = [await issue(taskId), await issue(taskId, warehouseRead), await issue(taskId, tickerRead)];
    await expect.poll(async () => (await view(taskId)).task!.state, { timeout: 15_000 }).toBe(TaskState.CLOSED);
    const { task, leases, summary } = await view(taskId);
    expect(task).toMatchObject({ closeCause: CloseCause.DEADLINE });
    expect(leases.map(({ state }) => state)).toEqual([LeaseState.SETTLED, LeaseState.SETTLED, LeaseState.SETTLED]);
    expect(summary).toMatchObject({ unsettled: 0, irrevocable: 0, expired: 3 });
    expect(await roleExists(served.estate, loginOf(login).username)).toBe(false);
    expect((await auditOf(served, taskId)).find(({ kind }) => kind === 'task.closed')).toMatchObject({
      actor: 'broker',
      detail: { cause: 'deadline' },
    });
  });
});

describe('a task that asked for heartbeats', () => {
  test('is closed when its opener goes silent', async () => {
    const { taskId } = await openTask(served, [reportsRead], { heartbeatInterval: { seconds: 1n } });
    await issue(taskId);
    await expect.poll(async () => (await view(taskId)).task!.state, { timeout: 10_000 }).toBe(TaskState.CLOSED);
    expect(await view(taskId)).toMatchObject({
      task: { closeCause: CloseCause.HEARTBEAT_LOST },
      summary: { unsettled: 0, revoked: 1 },
    });
    expect(await refusal(served.tasks.heartbeatTask({ taskId }))).toMatchObject({ reason: 'TASK_CLOSED' });
  });

  test('stays open for as long as its opener is heard, and others cannot speak for it', async () => {
    const { taskId } = await openTask(served, [reportsRead], { heartbeatInterval: { seconds: 2n } });
    expect(await refusal(tasksAs('orchestrator-2').heartbeatTask({ taskId }))).toMatchObject(unknownTask);
    const until = Date.now() + 5_000;
    while (Date.now() < until) {
      const before = Date.now();
      const due = ms((await served.tasks.heartbeatTask({ taskId })).dueTime);
      expect(due).toBeGreaterThanOrEqual(before + 2_000);
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
    expect((await view(taskId)).task!.state).toBe(TaskState.OPEN);
    await issue(taskId);
    await served.tasks.closeTask({ taskId });
  });

  test('only then has a heartbeat to send', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    expect(await refusal(served.tasks.heartbeatTask({ taskId }))).toMatchObject({
      reason: 'FIELD_INVALID',
      fields: ['task_id'],
    });
  });
});

describe('a close', () => {
  test('that waits answers with every outcome', async () => {
    const { taskId } = await openTask(served, [reportsRead, warehouseRead]);
    const [token, login] = [await issue(taskId), await issue(taskId, warehouseRead)];
    const closed = await served.tasks.closeTask({ taskId, wait: true, justification: 'done' });
    expect(closed.task).toMatchObject({ state: TaskState.CLOSED, closeCause: CloseCause.REQUESTED });
    expect(ms(closed.task!.settleTime)).toBeGreaterThanOrEqual(ms(closed.task!.closeTime));
    expect(closed.leases.map(({ leaseId, outcome }) => [leaseId, outcome])).toEqual([
      [token.lease.leaseId, LeaseOutcome.REVOKED],
      [login.lease.leaseId, LeaseOutcome.REVOKED],
    ]);
    expect(closed.summary).toMatchObject({ revoked: 2, unsettled: 0 });
  });

  test('that waits into its deadline answers `closing` instead of failing', async () => {
    const { taskId } = await openTask(served, [warehouseRead]);
    const one = await issue(taskId, warehouseRead);
    const name = new URL(served.estate.targetUrl).pathname.slice(1);
    const superuser = new URL(served.estate.targetUrl);
    superuser.pathname = '/postgres';
    // The target lets nobody in for a while.
    await sql(superuser.href, `ALTER DATABASE ${name} ALLOW_CONNECTIONS false`);
    await sql(superuser.href, 'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1', [name]);
    try {
      const closed = await served.tasks.closeTask({ taskId, wait: true }, { timeoutMs: 1_500 });
      expect(closed.task!.state).toBe(TaskState.CLOSING);
      expect(closed.summary).toMatchObject({ unsettled: 1 });
      expect(closed.leases).toMatchObject([{ state: LeaseState.SETTLING, outcome: LeaseOutcome.UNSPECIFIED }]);
      const admin = served.estate.client(AdminService, 'operator');
      await expect
        .poll(async () => (await admin.listLeases({ taskId, troubled: true })).leases.map(({ leaseId }) => leaseId), {
          timeout: 10_000,
        })
        .toEqual([one.lease.leaseId]);
    } finally {
      await sql(superuser.href, `ALTER DATABASE ${name} ALLOW_CONNECTIONS true`);
    }
    const settled = await served.tasks.closeTask({ taskId, wait: true }, { timeoutMs: 30_000 });
    expect(settled).toMatchObject({ task: { state: TaskState.CLOSED }, summary: { unsettled: 0, revoked: 1 } });
    expect(await roleExists(served.estate, loginOf(one).username)).toBe(false);
  });

  test('by several at once, and again when it is done, is one close with one answer', async () => {
    const { taskId } = await openTask(served, [reportsRead, warehouseRead]);
    await issue(taskId);
    await issue(taskId, warehouseRead);
    const answers = await Promise.all([1, 2, 3, 4].map(() => served.tasks.closeTask({ taskId, wait: true })));
    answers.push(await served.tasks.closeTask({ taskId, wait: true }));
    for (const answer of answers) expect(answer).toEqual(answers[0]);
    const kinds = (await auditOf(served, taskId)).map(({ kind }) => kind);
    expect(kinds.filter((kind) => kind === 'task.closed')).toHaveLength(1);
    expect(kinds.filter((kind) => kind === 'lease.settled')).toHaveLength(2);
    expect(kinds.filter((kind) => kind === 'task.settled')).toHaveLength(1);
  });

  test('is for the opener and for operators, and for nobody else', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    expect(await refusal(tasksAs('orchestrator-2').closeTask({ taskId }))).toMatchObject(unknownTask);
    expect(await refusal(tasksAs('agent/analyst').closeTask({ taskId }))).toMatchObject(unknownTask);
    expect(await refusal(tasksAs('auditor').closeTask({ taskId }))).toMatchObject({ reason: 'ROLE_REQUIRED' });
    expect((await view(taskId)).task!.state).toBe(TaskState.OPEN);
    const { task } = await tasksAs('operator').closeTask({ taskId, wait: true });
    expect(task!.state).toBe(TaskState.CLOSED);
    expect((await auditOf(served, taskId)).find(({ kind }) => kind === 'task.closed')!.actor).toBe(
      devWorkload('operator'),
    );
  });
});

test('a task with a thousand leases is shown and closed on the HTTP door, whose messages are smaller otherwise', async () => {
  const { taskId } = await openTask(served, [reportsRead]);
  // Callers have a bound on their rate.
  const atOnce = 50;
  for (let n = 0; n < 1_000; n += atOnce) {
    await Promise.all(
      Array.from({ length: atOnce }, async () => {
        for (;;) {
          const refused = await issue(taskId).then(
            () => undefined,
            (error: unknown) => error as ConnectError,
          );
          if (refused === undefined) return;
          if (refused.code !== Code.ResourceExhausted) throw refused;
          await new Promise((resolve) => setTimeout(resolve, 100));
        }
      }),
    );
  }
  expect((await view(taskId)).leases).toHaveLength(1_000);
  const closed = await served.tasks.closeTask({ taskId, wait: true });
  expect(closed.leases).toHaveLength(1_000);
  expect(closed.summary).toMatchObject({ unsettled: 0, revoked: 1_000 });
});

describe('lists', () => {
  test('of tasks page through all of them once, newest first, while new ones are opened', async () => {
    const mine = tasksAs('orchestrator-2');
    const open = async () => (await mine.openTask({ intent: 'x', agent: 'crew', tools: [tickerRead] })).task!.taskId;
    const ids: string[] = [];
    for (let index = 0; index < 7; index++) ids.push(await open());
    const seen: string[] = [];
    let pageToken = '';
    let pages = 0;
    do {
      const page = await mine.listTasks({ pageSize: 3, pageToken });
      const again = await mine.listTasks({ pageSize: 3, pageToken });
      if (pages > 0) expect(again).toEqual(page);
      seen.push(...page.tasks.map(({ taskId }) => taskId));
      pageToken = page.nextPageToken;
      pages++;
      await open();
    } while (pageToken !== '');
    expect(seen).toEqual(ids.reverse());
    expect(pages).toBe(3);
  });

  test('of tasks show each caller its own', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const pinned = 'spiffe://dev.leasehold.test/agent/crew/1';
    const crew = await openTask(served, [tickerRead], { agent: 'crew', agentWorkload: pinned });
    const listed = async (workload: string) =>
      (await tasksAs(workload).listTasks({ pageSize: 1_000 })).tasks.map((task) => task.taskId);
    for (const workload of ['orchestrator', 'operator', 'auditor', 'agent/analyst']) {
      expect(await listed(workload)).toContain(taskId);
    }
    expect(await listed('agent/crew/1')).toContain(crew.taskId);
    for (const workload of ['agent/crew/2', 'agent/analyst', 'orchestrator-2']) {
      expect(await listed(workload)).not.toContain(crew.taskId);
      expect(await refusal(tasksAs(workload).getTask({ taskId: crew.taskId }))).toMatchObject(unknownTask);
    }
    for (const workload of ['agent/crew/1', 'orchestrator-2']) expect(await listed(workload)).not.toContain(taskId);
    const audit = served.estate.client(AuditService, 'orchestrator-2');
    expect(await refusal(audit.listAuditEvents({ taskId }))).toMatchObject(unknownTask);
  });

  test('of tasks are narrowed by state and agent', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const listed = async (filter: Parameters<typeof served.tasks.listTasks>[0]) =>
      (await served.tasks.listTasks({ pageSize: 1_000, ...filter })).tasks;
    await served.tasks.closeTask({ taskId, wait: true });
    expect((await listed({ states: [TaskState.CLOSED] })).map((task) => task.taskId)).toContain(taskId);
    const open = await listed({ states: [TaskState.OPEN] });
    expect(open.every(({ state }) => state === TaskState.OPEN)).toBe(true);
    expect((await listed({ agent: 'crew' })).every(({ agent }) => agent === 'crew')).toBe(true);
    expect(await refusal(served.tasks.listTasks({ states: [TaskState.UNSPECIFIED] }))).toMatchObject({
      fields: ['states[0]'],
    });
  });

  test('of leases page through the same leases that the database holds', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    for (let index = 0; index < 5; index++) {
      await served.agent.issueCredential({ requestId: randomUUID(), taskId, ...reportsRead });
    }
    const seen: string[] = [];
    let pageToken = '';
    do {
      const page = await served.admin.listLeases({ taskId, pageSize: 2, pageToken });
      seen.push(...page.leases.map(({ leaseId }) => leaseId));
      pageToken = page.nextPageToken;
    } while (pageToken !== '');
    const rows = await sql(
      served.estate.databaseUrl,
      'SELECT lease_id FROM leasehold.leases WHERE task_id = $1 ORDER BY issued_at DESC, lease_id DESC',
      [taskId],
    );
    expect(seen).toEqual(rows.map(({ lease_id }) => lease_id));
    expect((await served.admin.listLeases({ taskId, states: [LeaseState.SETTLED] })).leases).toEqual([]);
    await served.tasks.closeTask({ taskId, wait: true });
    expect((await served.admin.listLeases({ taskId, states: [LeaseState.SETTLED] })).leases).toHaveLength(5);
  });

  test('refuse a page token that they did not answer with', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const refused = { code: 'InvalidArgument', reason: 'FIELD_INVALID', fields: ['page_token'] };
    const encoded = (id: string) => Buffer.from(id).toString('base64url');
    const digits = '0198f1c20198f1c20198f1c20198f1c2';
    for (const pageToken of ['bm90IGFuIGlk', '%%%', encoded(`${taskId}'--`), encoded(`lse_${digits}`)]) {
      expect(await refusal(served.tasks.listTasks({ pageToken }))).toMatchObject(refused);
      expect(await refusal(served.audit.listAuditEvents({ taskId, pageToken }))).toMatchObject(refused);
    }
    for (const pageToken of ['bm90IGFuIGlk', '%%%', encoded(taskId)]) {
      expect(await refusal(served.admin.listLeases({ pageToken }))).toMatchObject(refused);
    }
  });

  test.each([-1, 1_001])('refuse a page of %i', async (pageSize) => {
    const { taskId } = await openTask(served, [reportsRead]);
    const refused = { code: 'InvalidArgument', fields: ['page_size'] };
    expect(await refusal(served.tasks.listTasks({ pageSize }))).toMatchObject(refused);
    expect(await refusal(served.admin.listLeases({ pageSize }))).toMatchObject(refused);
    expect(await refusal(served.audit.listAuditEvents({ taskId, pageSize }))).toMatchObject(refused);
  });
});
