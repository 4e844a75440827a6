import { randomUUID } from 'node:crypto';
import { timestampMs } from '@bufbuild/protobuf/wkt';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { ApprovalKind, ApprovalState, Verdict } from '../../src/gen/leasehold/v1/approval_service_pb.js';
import { Effect } from '../../src/gen/leasehold/v1/common_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { devWorkload } from '../../src/dev/environment.ts';
import { auditOf, editPolicy, held, refusal, sql } from '../e2e/support.ts';
import { approve, askFor, deny, look, open, openTask, people, refund, serve, turn, type Served } from './support.ts';

let served: Served;
beforeAll(async () => {
  served = await serve('approve');
});
afterAll(async () => {
  await served.stop();
});

const kinds = async (taskId: string) => (await auditOf(served, taskId)).map(({ kind }) => kind);

describe('a use that policy wants approved', () => {
  test('is refused with the name of the one approval that asks for it, approved by the owner, issued, and used', async () => {
    const taskId = await openTask(served);
    const first = await askFor(served, { taskId, ...look });
    expect(first.refused).toMatchObject({ code: 'FailedPrecondition', reason: 'APPROVAL_REQUIRED' });
    expect(first.name).toMatch(/^apr_[0-9a-f]{32}$/);
    const again = await askFor(served, { taskId, ...look });
    expect(again.name).toBe(first.name);

    const asked = (await served.approvals(people.owner).getApproval({ approvalId: first.name })).approval!;
    expect(asked).toMatchObject({
      kind: ApprovalKind.REQUEST,
      state: ApprovalState.PENDING,
      taskId,
      agent: 'analyst',
      tool: 'vault-door',
      workload: devWorkload('agent/analyst'),
      opener: devWorkload('orchestrator'),
      uses: 1,
      usesLeft: 1,
      policyRule: 'people/owners',
    });
    expect(asked.quorums[0]!.approvers).toContain('door-owners');
    const approved = await approve(served, people.owner, first.name, 'go ahead');
    expect(approved).toMatchObject({ state: ApprovalState.APPROVED, usesLeft: 1 });

    const requestId = randomUUID();
    const issued = held(await served.agent.issueCredential({ taskId, requestId, ...look }));
    expect(issued.credential.material.case).toBe('accessToken');
    const used = (await served.approvals(people.owner).getApproval({ approvalId: first.name })).approval!;
    expect(used).toMatchObject({ state: ApprovalState.USED, usesLeft: 0 });

    // The answer was lost: the same request gets the same lease, and no second use.
    const replayed = held(await served.agent.issueCredential({ taskId, requestId, ...look }));
    expect(replayed.lease.leaseId).toBe(issued.lease.leaseId);

    // A second use needs people again.
    const next = await askFor(served, { taskId, ...look });
    expect(next.refused.reason).toBe('APPROVAL_REQUIRED');
    expect(next.name).not.toBe(first.name);

    const events = await auditOf(served, taskId);
    const about = (kind: string) => events.filter((event) => event.kind === kind);
    expect(about('approval.requested')).toHaveLength(2);
    expect(about('approval.approved')).toMatchObject([
      { actor: devWorkload(people.owner), detail: { approval: first.name, comment: 'go ahead' } },
    ]);
    expect(about('approval.used')).toMatchObject([
      { leaseId: issued.lease.leaseId, detail: { approval: first.name, tool: 'vault-door', tier: 'read' } },
    ]);
    expect(about('decision.made').filter(({ leaseId }) => leaseId !== '')).toMatchObject([
      { detail: { effect: 'allow', approval: first.name, rule: 'people/owners' } },
    ]);
  });

  test('is issued once when a hundred ask at once on a single use', async () => {
    const taskId = await openTask(served);
    const { name } = await askFor(served, { taskId, ...look });
    await approve(served, people.owner, name);
    const results = await Promise.allSettled(
      Array.from({ length: 100 }, () => served.agent.issueCredential({ taskId, ...look, approval: name })),
    );
    expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    const refused = await Promise.all(
      results.flatMap((result) =>
        result.status === 'rejected' ? [refusal(Promise.reject(result.reason as Error))] : [],
      ),
    );
    expect(new Set(refused.map(({ reason }) => reason))).toEqual(new Set(['APPROVAL_USED']));
    // The database's own word.
    expect(
      await sql(served.estate.databaseUrl, 'SELECT FROM leasehold.leases WHERE task_id = $1', [taskId]),
    ).toHaveLength(1);
    expect(
      await sql(served.estate.databaseUrl, 'SELECT FROM leasehold.approval_uses WHERE approval_id = $1', [name]),
    ).toHaveLength(1);
  });

  test('is issued as often as uses were approved, and not once more, whoever asks without naming it', async () => {
    const taskId = await openTask(served);
    const { name } = await askFor(served, { taskId, ...turn });
    await approve(served, people.guard, name);
    await approve(served, people.captain, name);
    const results = await Promise.allSettled(
      Array.from({ length: 20 }, () => served.agent.issueCredential({ taskId, ...turn })),
    );
    expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(3);
    // The seventeen that were left over ask for one new approval, not for seventeen.
    const rows = await sql(
      served.estate.databaseUrl,
      'SELECT state FROM leasehold.approvals WHERE task_id = $1 ORDER BY 1',
      [taskId],
    );
    expect(rows).toEqual([{ state: 'pending' }, { state: 'used' }]);
  });

  test('waits by stream, and is issued when people have decided', async () => {
    const taskId = await openTask(served);
    const { name } = await askFor(served, { taskId, ...look });
    const seen: ApprovalState[] = [];
    const waiting = (async () => {
      for await (const { approval } of served.approvals('agent/analyst').watchApproval({ approvalId: name })) {
        seen.push(approval!.state);
      }
      return held(await served.agent.issueCredential({ taskId, ...look, approval: name }));
    })();
    await expect.poll(() => seen.length).toBe(1);
    await approve(served, people.owner, name);
    expect((await waiting).lease.tool).toBe('vault-door');
    expect(seen).toEqual([ApprovalState.PENDING, ApprovalState.APPROVED]);
  });
});

describe('an approval counts for nothing', () => {
  test('to another task of the same agent, however alike', async () => {
    const [one, other] = [await openTask(served), await openTask(served)];
    const { name } = await askFor(served, { taskId: one, ...look });
    await approve(served, people.owner, name);
    expect(await refusal(served.agent.issueCredential({ taskId: other, ...look, approval: name }))).toMatchObject({
      reason: 'APPROVAL_MISMATCH',
      metadata: { differs: 'task' },
    });
    const unnamed = await askFor(served, { taskId: other, ...look });
    expect(unnamed.refused.reason).toBe('APPROVAL_REQUIRED');
    expect(unnamed.name).not.toBe(name);
  });

  test('to a task below the one that it was given to', async () => {
    const admin = served.estate.client(AdminService, 'operator');
    await editPolicy({ ...served, admin }, 'agents.yaml', (text) =>
      text.replace(/^ {2}workloads: \[.*\/analyst\]$/m, '$&\n  delegation: { to: [analyst] }'),
    );
    const parent = await openTask(served);
    const { task } = await served.estate.client(TaskService, 'agent/analyst').openTask({
      parentTaskId: parent,
      intent: 'a part of it',
      agent: 'analyst',
      tools: [look],
    });
    const child = task!.taskId;
    const { name } = await askFor(served, { taskId: parent, ...look });
    await approve(served, people.owner, name);
    expect(await refusal(served.agent.issueCredential({ taskId: child, ...look, approval: name }))).toMatchObject({
      reason: 'APPROVAL_MISMATCH',
      metadata: { differs: 'task' },
    });
    expect((await askFor(served, { taskId: child, ...look })).refused.reason).toBe('APPROVAL_REQUIRED');
  });

  test('to another agent, which is not even told of it', async () => {
    const mine = await openTask(served);
    const { name } = await askFor(served, { taskId: mine, ...look });
    await approve(served, people.owner, name);
    const theirs = await openTask(served, { agent: 'twin', tools: [look] });
    const twin = served.estate.client(CredentialService, 'agent/twin');
    expect(await refusal(twin.issueCredential({ taskId: theirs, ...look, approval: name }))).toMatchObject({
      code: 'NotFound',
      reason: 'APPROVAL_NOT_FOUND',
    });
    expect(await refusal(served.approvals('agent/twin').getApproval({ approvalId: name }))).toMatchObject({
      reason: 'APPROVAL_NOT_FOUND',
    });
  });

  test('for another tool or tier of the same task', async () => {
    const taskId = await openTask(served);
    const { name } = await askFor(served, { taskId, ...look });
    await approve(served, people.owner, name);
    for (const [access, differs] of [
      [turn, 'tier'],
      [refund, 'tool'],
    ] as const) {
      expect(await refusal(served.agent.issueCredential({ taskId, ...access, approval: name }))).toMatchObject({
        reason: 'APPROVAL_MISMATCH',
        metadata: { differs },
      });
    }
  });

  test('for other arguments than those that people saw', async () => {
    const taskId = await openTask(served);
    const seen = { amount: 40, customer: 'ann' };
    const { name } = await askFor(served, { taskId, ...refund, arguments: seen });
    const { approval } = await served.approvals(people.clerk).getApproval({ approvalId: name });
    expect(approval!.arguments).toEqual(seen);
    await approve(served, people.clerk, name);
    for (const changed of [{ amount: 41, customer: 'ann' }, { amount: 40 }, {}]) {
      expect(
        await refusal(served.agent.issueCredential({ taskId, ...refund, arguments: changed, approval: name })),
      ).toMatchObject({ reason: 'APPROVAL_MISMATCH', metadata: { differs: 'arguments' } });
      // Nor is it found by who does not name it.
      expect((await askFor(served, { taskId, ...refund, arguments: changed })).name).not.toBe(name);
    }
    // In another order they are the same (RFC 8785).
    held(await served.agent.issueCredential({ taskId, ...refund, arguments: { customer: 'ann', amount: 40 } }));
    const used = await served.approvals(people.clerk).getApproval({ approvalId: name });
    expect(used.approval!.state).toBe(ApprovalState.USED);
  });

  test('once it was not used in time', async () => {
    const taskId = await openTask(served);
    const { name } = await askFor(served, { taskId, ...open });
    await approve(served, people.guard, name);
    await expect
      .poll(async () => (await served.approvals(people.guard).getApproval({ approvalId: name })).approval?.state, {
        timeout: 10_000,
      })
      .toBe(ApprovalState.EXPIRED);
    expect(await refusal(served.agent.issueCredential({ taskId, ...open, approval: name }))).toMatchObject({
      reason: 'APPROVAL_EXPIRED',
    });
    expect(await kinds(taskId)).toContain('approval.expired');
  });
});

describe('who decides', () => {
  test('is never who asks: not the agent, not the opener, though their group is named', async () => {
    const taskId = await openTask(served);
    const { name } = await askFor(served, { taskId, ...turn });
    // Neither holds the role; were it given, being the requester would still be in the way (next test).
    for (const workload of ['agent/analyst', 'orchestrator']) {
      const decided = served.approvals(workload).decideApproval({ approvalId: name, verdict: Verdict.APPROVE });
      expect(await refusal(decided)).toMatchObject({ code: 'PermissionDenied', reason: 'ROLE_REQUIRED' });
    }
  });

  test('takes as many different people as policy says, and one person’s word counts once', async () => {
    const taskId = await openTask(served);
    const { name } = await askFor(served, { taskId, ...turn });
    const once = await approve(served, people.guard, name, 'first');
    const twice = await approve(served, people.guard, name, 'first again');
    for (const approval of [once, twice]) {
      expect(approval.state).toBe(ApprovalState.PENDING);
      expect(approval.quorums[0]).toMatchObject({ count: 2, given: 1 });
    }
    expect((await askFor(served, { taskId, ...turn })).refused.reason).toBe('APPROVAL_REQUIRED');
    expect((await approve(served, people.captain, name)).state).toBe(ApprovalState.APPROVED);
    held(await served.agent.issueCredential({ taskId, ...turn }));
    expect(await kinds(taskId)).toEqual(expect.arrayContaining(['approval.voted', 'approval.approved']));
  });

  test('is nobody whom the rule does not name: to others the approval does not exist', async () => {
    const taskId = await openTask(served);
    const { name } = await askFor(served, { taskId, ...turn });
    expect(await refusal(approve(served, people.clerk, name))).toMatchObject({ reason: 'APPROVAL_NOT_FOUND' });
    const { approvals } = await served.approvals(people.clerk).listApprovals({ taskId });
    expect(approvals).toEqual([]);
    const mine = await served.approvals(people.guard).listApprovals({ taskId, states: [ApprovalState.PENDING] });
    expect(mine.approvals.map(({ approvalId }) => approvalId)).toEqual([name]);
  });

  test('can say no, and one no is enough; the same is not asked again while it cools down', async () => {
    const taskId = await openTask(served);
    const { name } = await askFor(served, { taskId, ...refund });
    const denied = await deny(served, people.clerk, name, 'not this customer');
    expect(denied).toMatchObject({ state: ApprovalState.DENIED, votes: [{ comment: 'not this customer' }] });
    const again = await askFor(served, { taskId, ...refund });
    expect(again).toMatchObject({ name, refused: { code: 'FailedPrecondition', reason: 'APPROVAL_DENIED' } });
    expect(Date.parse(again.refused.metadata['ask_again']!)).toBeGreaterThan(Date.now() + 3_000_000);
    expect(await refusal(approve(served, people.clerk, name))).toMatchObject({ reason: 'APPROVAL_SETTLED' });
    expect(await kinds(taskId)).toContain('approval.denied');
  });

  test('too late has denied it: nobody decided in time', async () => {
    const taskId = await openTask(served);
    const { name } = await askFor(served, { taskId, ...open });
    const states: ApprovalState[] = [];
    for await (const { approval } of served.approvals('agent/analyst').watchApproval({ approvalId: name })) {
      states.push(approval!.state);
    }
    expect(states).toEqual([ApprovalState.PENDING, ApprovalState.TIMED_OUT]);
    // It cools down from when it was to be decided, whenever a worker came to it.
    const { approval } = await served.approvals('agent/analyst').getApproval({ approvalId: name });
    expect(timestampMs(approval!.coolDownUntil!)).toBe(timestampMs(approval!.decideBy!) + 3_600_000);
    expect(await refusal(approve(served, people.guard, name))).toMatchObject({ reason: 'APPROVAL_SETTLED' });
    const again = await askFor(served, { taskId, ...open });
    expect(again).toMatchObject({ name, refused: { reason: 'APPROVAL_DENIED', metadata: { cause: 'timed_out' } } });
    expect(await kinds(taskId)).toContain('approval.timed_out');
  });

  test('has nothing to decide once the task has ended', async () => {
    const taskId = await openTask(served);
    const { name } = await askFor(served, { taskId, ...look });
    await served.tasks.closeTask({ taskId });
    await expect
      .poll(async () => (await served.approvals(people.owner).getApproval({ approvalId: name })).approval?.state)
      .toBe(ApprovalState.CANCELLED);
    expect(await refusal(approve(served, people.owner, name))).toMatchObject({ reason: 'APPROVAL_SETTLED' });
  });
});

describe('everything at once', () => {
  test('an orchestrator asks for all that a task will need before its agent has called, and people answer one time', async () => {
    const taskId = await openTask(served);
    const asked = await served.approvals('orchestrator').requestApprovals({
      taskId,
      actions: [look, turn, { tool: 'shop', tier: shutTier() }],
      justification: 'tonight’s run',
    });
    expect(asked.results.map(({ effect }) => effect)).toEqual([
      Effect.NEEDS_APPROVAL,
      Effect.NEEDS_APPROVAL,
      Effect.DENY,
    ]);
    const [first, second] = asked.results.map(({ approval }) => approval);
    expect(first!.groupId).toBe(second!.groupId);
    expect(first!).toMatchObject({ workload: '', justification: 'tonight’s run' });
    expect(
      await refusal(
        served
          .approvals('orchestrator')
          .requestApprovals({ taskId, actions: [look, { ...refund, arguments: { amount: 501 } }] }),
      ),
    ).toMatchObject({ reason: 'FIELD_INVALID', fields: ['actions[1].arguments.amount'] });
    // Sent again, it asks nobody anew.
    const repeated = await served.approvals('orchestrator').requestApprovals({ taskId, actions: [look, turn] });
    expect(repeated.results.map(({ approval }) => approval!.approvalId)).toEqual([
      first!.approvalId,
      second!.approvalId,
    ]);

    await approve(served, people.owner, first!.approvalId);
    const { others } = await served
      .approvals(people.guard)
      .decideApproval({ approvalId: second!.approvalId, verdict: Verdict.APPROVE, wholeGroup: true });
    expect(others).toEqual([]);
    await approve(served, people.captain, second!.approvalId);
    held(await served.agent.issueCredential({ taskId, ...look }));
    held(await served.agent.issueCredential({ taskId, ...turn }));
  });

  test('the same use of several tasks is one group, decided with one word, each an approval of its own', async () => {
    const ids = [await openTask(served), await openTask(served), await openTask(served)];
    const bobs = { customer: 'bob' };
    const names: string[] = [];
    for (const taskId of ids) names.push((await askFor(served, { taskId, ...refund, arguments: bobs })).name);
    expect(new Set(names).size).toBe(3);
    const { approval, others } = await served
      .approvals(people.clerk)
      .decideApproval({ approvalId: names[0]!, verdict: Verdict.APPROVE, wholeGroup: true });
    expect([approval!, ...others].map(({ state }) => state)).toEqual(Array(3).fill(ApprovalState.APPROVED));
    for (const taskId of ids) held(await served.agent.issueCredential({ taskId, ...refund, arguments: bobs }));
  });
});

describe('under another revision', () => {
  test('an approval that was given under the one before counts for nothing', async () => {
    const { writeFile, readFile } = await import('node:fs/promises');
    const taskId = await openTask(served);
    const { name } = await askFor(served, { taskId, ...look });
    await approve(served, people.owner, name);
    const before = (await served.admin.getStatus({})).policyRevision;
    const file = `${served.estate.policyDir}/approvals.yaml`;
    await writeFile(
      file,
      (await readFile(file, 'utf8')).replace('Looking needs the owner.', 'Looking still needs the owner.'),
    );
    await expect
      .poll(async () => (await served.admin.getStatus({})).policyRevision, { timeout: 10_000 })
      .not.toBe(before);
    expect(await refusal(served.agent.issueCredential({ taskId, ...look, approval: name }))).toMatchObject({
      reason: 'APPROVAL_MISMATCH',
      metadata: { differs: 'policy_revision' },
    });
    const again = await askFor(served, { taskId, ...look });
    expect(again.refused.reason).toBe('APPROVAL_REQUIRED');
    expect(again.name).not.toBe(name);
  });
});

test('an approver sees no task by deciding: its role opens nothing else', async () => {
  const taskId = await openTask(served);
  const tasks = served.estate.client(TaskService, people.owner);
  expect(await refusal(tasks.getTask({ taskId }))).toMatchObject({ reason: 'ROLE_REQUIRED' });
});

function shutTier() {
  return 3;
}
