import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { devWorkload } from '../../src/dev/environment.ts';
import { CloseCause, Effect, LeaseState, TaskState } from '../../src/gen/leasehold/v1/common_pb.js';
import { createVerifier, followRevocations, type TokenRefused } from '../../src/verifier/index.ts';
import { auditOf, held, loginOf, loginRefusal, refusal, sql, tokenOf } from '../e2e/support.ts';
import { access, openChild, openRoot, startEstate, type Estate } from './support.ts';

let estate: Estate;
beforeAll(async () => {
  estate = await startEstate('handover');
});
afterAll(() => estate.stop());

const first = 'agent/lead/1';
const second = 'agent/lead/2';
const toSecond = { agent: 'lead', agentWorkload: devWorkload(second), justification: 'the first one crashed' };
const issue = (workload: string, taskId: string, wanted: object, port?: number) =>
  estate.credentials(workload, port).issueCredential({ taskId, ...access.reports, ...wanted });

describe('a task that is handed over', () => {
  test('settles what the one before holds, tells the feed at once, and says what the new one may do', async () => {
    const root = await openRoot(estate, 'lead');
    const child = await openChild(estate, first, root.taskId);
    const token = tokenOf(held(await issue(first, root.taskId, access.reports)));
    const childs = tokenOf(held(await issue('agent/helper/1', child.taskId, access.reports)));
    const login = loginOf(held(await issue(first, root.taskId, access.warehouse)));
    const audience = 'https://reports.dev.leasehold.test';
    const feed = followRevocations({
      baseUrl: estate.estate.httpUrl,
      token: () => estate.estate.mint('tool/reports'),
    });
    try {
      await feed.ready();
      const jwks = new URL('/.well-known/jwks.json', estate.estate.httpUrl);
      const verifier = createVerifier({ issuer: estate.estate.httpUrl, audience, jwks, feed });
      await verifier.verify(token);

      const answer = await estate.tasks('operator').handOverTask({ taskId: root.taskId, ...toSecond });
      expect(answer).toMatchObject({ closedTasks: 1, endedLeases: 2 });
      expect(answer.task).toMatchObject({
        state: TaskState.OPEN,
        agent: 'lead',
        agentWorkload: devWorkload(second),
        epoch: root.epoch + 1n,
      });
      expect(answer.plan.map(({ effect }) => effect)).toEqual([
        Effect.ALLOW,
        Effect.ALLOW,
        expect.any(Number),
        Effect.NEEDS_APPROVAL,
      ]);
      for (const dead of [token, childs]) {
        await expect
          .poll(async () => (await verifier.verify(dead).catch((error: TokenRefused) => error.code)) as string, {
            timeout: 10_000,
          })
          .toBe('revoked');
      }
      await expect.poll(() => loginRefusal(login), { timeout: 15_000 }).toBeDefined();
      // The task goes on: what is issued now is not dead with what was issued before.
      await verifier.verify(tokenOf(held(await issue(second, root.taskId, access.reports))));
    } finally {
      await feed.close();
    }
    const { tree } = { tree: (await estate.tasks('orchestrator').listTaskTree({ taskId: root.taskId })).nodes };
    expect(tree[1]).toMatchObject({ taskId: child.taskId, closeCause: CloseCause.HANDED_OVER });
    const events = await auditOf(estate, root.taskId);
    expect(events.find(({ kind }) => kind === 'task.handed_over')).toMatchObject({
      actor: devWorkload('operator'),
      detail: {
        from: { agent: 'lead', workload: devWorkload(first) },
        to: { agent: 'lead', workload: devWorkload(second) },
        justification: 'the first one crashed',
        closed_tasks: 1,
        ended_leases: 2,
      },
    });
  });

  test('is nothing to the one before any more, on every replica', async () => {
    const root = await openRoot(estate, 'lead');
    const leases = [];
    for (const port of estate.ports) leases.push(held(await issue(first, root.taskId, access.reports, port)).lease);
    await estate.tasks('orchestrator', estate.ports[0]).handOverTask({ taskId: root.taskId, ...toSecond });
    for (const port of estate.ports) {
      expect(await refusal(issue(first, root.taskId, access.reports, port))).toMatchObject({
        reason: 'TASK_NOT_FOUND',
      });
      for (const { leaseId } of leases) {
        const renewal = estate.credentials(first, port).renewCredential({ leaseId });
        expect((await refusal(renewal)).reason).toMatch(/^(TASK_NOT_FOUND|LEASE_ENDED)$/);
        // Nor is it the other’s.
        expect(await refusal(estate.credentials(second, port).renewCredential({ leaseId }))).toMatchObject({
          reason: 'LEASE_NOT_FOUND',
        });
      }
      expect(await refusal(openChild(estate, first, root.taskId))).toMatchObject({ reason: 'TASK_NOT_FOUND' });
      held(await issue(second, root.taskId, access.reports, port));
    }
  });

  test('takes no approval along', async () => {
    const root = await openRoot(estate, 'lead', { agentWorkload: '' });
    // Asked before the task had a workload: it would fit any of the agent’s.
    const asked = await estate
      .approvals('orchestrator')
      .requestApprovals({ taskId: root.taskId, actions: [access.settle] });
    const approvalId = asked.results[0]!.approval!.approvalId;
    await estate.approvals('approver/lena').decideApproval({ approvalId, verdict: 1 });
    await estate.tasks('orchestrator').handOverTask({ taskId: root.taskId, ...toSecond });
    const refused = await refusal(issue(second, root.taskId, access.settle));
    expect(refused).toMatchObject({ reason: 'APPROVAL_REQUIRED' });
    expect(refused.metadata['approval']).not.toBe(approvalId);
    const named = await refusal(issue(second, root.taskId, { ...access.settle, approval: approvalId }));
    expect(named.reason).toBe('APPROVAL_SETTLED');
  });

  test('is decided under the rights of the new agent, and its older decisions come out the same again', async () => {
    const root = await openRoot(estate, 'lead');
    const before = held(await issue(first, root.taskId, access.reports));
    const helper = { agent: 'helper', agentWorkload: devWorkload('agent/helper/1'), justification: 'change of shift' };
    const { plan } = await estate.tasks('orchestrator').handOverTask({ taskId: root.taskId, ...helper });
    expect(plan[0]).toMatchObject({ effect: Effect.ALLOW, policyRule: 'delegation/helper-reads' });
    const after = held(await issue('agent/helper/1', root.taskId, access.reports));
    expect(after.lease.agent).toBe('helper');
    for (const { lease } of [before, after]) {
      const explained = await estate.policy.explainDecision({ subject: { case: 'decisionId', value: lease.leaseId } });
      expect(explained).toMatchObject({ reproduced: true, policyRule: lease.policyRule });
    }
  });

  test('once, however often the same call comes', async () => {
    const root = await openRoot(estate, 'lead');
    const requestId = randomUUID();
    await issue(first, root.taskId, access.reports);
    const call = () => estate.tasks('orchestrator').handOverTask({ requestId, taskId: root.taskId, ...toSecond });
    const answers = await Promise.all([call(), call()]);
    await issue(second, root.taskId, access.reports);
    answers.push(await call());
    for (const { task, endedLeases } of answers) {
      expect(endedLeases).toBe(1);
      expect(task!.epoch).toBe(root.epoch + 1n);
    }
    const { leases } = await estate.admin.listLeases({ taskId: root.taskId });
    expect(leases.filter(({ state }) => state === LeaseState.ACTIVE)).toHaveLength(1);
  });

  test('by its opener or an operator, with a reason, to a workload of a registered agent that its parent delegates to', async () => {
    const root = await openRoot(estate, 'lead');
    const child = await openChild(estate, first, root.taskId);
    const to = { taskId: root.taskId, ...toSecond };
    expect(await refusal(estate.tasks(first).handOverTask(to))).toMatchObject({ reason: 'TASK_NOT_FOUND' });
    expect(await refusal(estate.tasks('auditor').handOverTask(to))).toMatchObject({ reason: 'ROLE_REQUIRED' });
    for (const [change, field] of [
      [{ justification: ' ' }, 'justification'],
      [{ agentWorkload: devWorkload('agent/helper/1') }, 'agent_workload'],
      [{ agent: 'nobody' }, 'agent'],
    ] as const) {
      const refused = await refusal(estate.tasks('orchestrator').handOverTask({ ...to, ...change }));
      expect(refused.fields).toEqual([field]);
    }
    const link = { agent: 'link', agentWorkload: devWorkload('agent/link/1') };
    expect(await refusal(estate.tasks(first).handOverTask({ ...to, taskId: child.taskId, ...link }))).toMatchObject({
      reason: 'DELEGATION_REFUSED',
    });
    const helper = { agent: 'helper', agentWorkload: devWorkload('agent/helper/9') };
    await estate.tasks(first).handOverTask({ ...to, taskId: child.taskId, ...helper });
    await estate.tasks('orchestrator').closeTask({ taskId: root.taskId });
    expect(await refusal(estate.tasks('orchestrator').handOverTask(to))).toMatchObject({ reason: 'TASK_CLOSED' });
  });
});

test(
  'nothing is issued to the one before a hand-over that has returned, on two replicas',
  { timeout: 90_000 },
  async () => {
    let next = 0;
    const round = async (index: number) => {
      const [near, far] = index % 2 === 0 ? estate.ports : ([...estate.ports].reverse() as [number, number]);
      const wanted = index % 8 === 0 ? access.warehouse : access.reports;
      const root = await openRoot(estate, 'lead', {}, near);
      await issue(first, root.taskId, access.reports, far);
      const racing = Promise.allSettled([near, far].map((port) => issue(first, root.taskId, wanted, port)));
      await estate.tasks('orchestrator', far).handOverTask({ taskId: root.taskId, ...toSecond });
      expect((await refusal(issue(first, root.taskId, wanted, near))).reason).toBe('TASK_NOT_FOUND');
      await racing;
      const left = await sql(
        estate.estate.databaseUrl,
        `SELECT lease_id FROM leasehold.leases WHERE task_id = $1 AND state = 'active'`,
        [root.taskId],
      );
      expect(left).toEqual([]);
    };
    await Promise.all(
      Array.from({ length: 6 }, async () => {
        while (next < 60) await round(next++);
      }),
    );
    const behind = await sql(
      estate.estate.databaseUrl,
      `SELECT i.task_id FROM leasehold.audit_events i JOIN leasehold.audit_events h USING (tenant, task_id)
     WHERE h.kind = 'task.handed_over' AND i.kind = 'lease.issued' AND i.event_id > h.event_id
       AND i.actor = h.detail -> 'from' ->> 'workload'`,
    );
    expect(behind).toEqual([]);
  },
);
