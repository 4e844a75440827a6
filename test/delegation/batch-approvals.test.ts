import { randomUUID } from 'node:crypto';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { devWorkload } from '../../src/dev/environment.ts';
import type { RequestApprovalsRequestSchema } from '../../src/gen/leasehold/v1/approval_service_pb.js';
import { ApprovalKind, ApprovalState, Verdict } from '../../src/gen/leasehold/v1/approval_service_pb.js';
import { Effect, Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { auditOf, held, loginOf, loginRefusal, refusal, roleExists, sql } from '../e2e/support.ts';
import { access, openChild, openRoot, rolesAtTarget, startEstate, type Estate } from './support.ts';

/** Approvals never pass down; a task may hold those that name what a task directly below it will do. */

type Action = NonNullable<MessageInitShape<typeof RequestApprovalsRequestSchema>['actions']>[number];

const chief = 'agent/chief/1';
const aide = 'agent/aide/1';
const gus = 'approver/gus';
const gil = 'approver/gil';
const sales = { tool: 'sales', tier: Tier.READ };
const north = { region: 'north' };
const settle = { ...access.settle, arguments: { account: 'a' } };

let estate: Estate;
beforeAll(async () => {
  // Everybody may decide by role and group: only who has a hand in the work is in the way.
  const approvers = [gus, gil, 'orchestrator', 'agent/chief/*', 'agent/aide/*'].map(devWorkload);
  estate = await startEstate('batch', {
    documents: ['batch.yaml'],
    groups: { guards: approvers },
    overrides: {
      access: [
        { workloads: [devWorkload('orchestrator')], roles: ['orchestrator', 'approver'] },
        { workloads: [devWorkload('operator')], roles: ['operator'] },
        { workloads: [devWorkload('auditor')], roles: ['auditor'] },
        { workloads: ['approver/*', 'agent/*'].map(devWorkload), roles: ['approver'] },
      ],
    },
  });
});
afterAll(() => estate.stop());

// Labelled as no task below it is: those have their own.
const openParent = () =>
  openRoot(estate, 'chief', { tools: [sales, access.reports, access.settle], labels: { env: 'prod' } });
const openAide = (parent: string, workload = aide, opener = chief, change: object = {}) =>
  openChild(estate, opener, parent, {
    agent: 'aide',
    agentWorkload: devWorkload(workload),
    tools: [sales, access.settle],
    ...change,
  });
const issue = (workload: string, taskId: string, wanted: object, port?: number) =>
  estate.credentials(workload, port).issueCredential({ requestId: randomUUID(), taskId, ...sales, ...wanted });

async function ask(taskId: string, action: Action, by = chief) {
  const { results } = await estate.approvals(by).requestApprovals({ taskId, actions: [{ ...sales, ...action }] });
  return results[0]!;
}

/** What people have agreed to ahead of time for aides below this task. */
async function agreed(taskId: string, action: Action = {}, people = [gus]): Promise<string> {
  const { approval } = await ask(taskId, { agent: 'aide', arguments: north, ...action });
  for (const person of people) await decide(person, approval!.approvalId);
  return approval!.approvalId;
}

async function decide(person: string, approvalId: string, verdict = Verdict.APPROVE) {
  return (await estate.approvals(person).decideApproval({ approvalId, verdict })).approval!;
}

async function stateOf(approvalId: string) {
  return (await estate.approvals('auditor').getApproval({ approvalId })).approval!;
}

async function leasesOf(...taskIds: string[]) {
  return await sql(estate.estate.databaseUrl, 'SELECT * FROM leasehold.leases WHERE task_id = ANY($1)', [taskIds]);
}

/** Refused, and neither a lease here nor a role at the target came of it. */
async function refusedWithoutTrace(workload: string, taskId: string, wanted: object) {
  const before = [await leasesOf(taskId), await rolesAtTarget(estate.estate)];
  const refused = await refusal(issue(workload, taskId, wanted));
  expect([await leasesOf(taskId), await rolesAtTarget(estate.estate)]).toEqual(before);
  return refused;
}

describe('an approval that a task holds for those directly below it', () => {
  test('is asked for before there is one, says whose use it is, and is found by the task below that makes it', async () => {
    const parent = await openParent();
    const asked = await ask(parent.taskId, { agent: 'aide', arguments: north });
    expect(asked).toMatchObject({
      effect: Effect.NEEDS_APPROVAL,
      approval: {
        kind: ApprovalKind.FOR_CHILD,
        taskId: parent.taskId,
        agent: 'aide',
        parentAgent: 'chief',
        workload: '',
        arguments: north,
        uses: 1,
      },
    });
    const name = asked.approval!.approvalId;
    // Asked again, also by the orchestrator, it is the same one.
    const again = await ask(parent.taskId, { agent: 'aide', arguments: north }, 'orchestrator');
    expect(again.approval!.approvalId).toBe(name);

    const child = await openAide(parent.taskId);
    const waiting = await refusedWithoutTrace(aide, child.taskId, { arguments: north });
    expect(waiting).toMatchObject({ reason: 'APPROVAL_REQUIRED', metadata: { approval: name } });
    const watched: ApprovalState[] = [];
    const watching = (async () => {
      for await (const { approval } of estate.approvals(aide).watchApproval({ approvalId: name })) {
        watched.push(approval!.state);
      }
    })();
    await expect.poll(() => watched.length).toBe(1);
    await decide(gus, name);
    await watching;
    expect(watched.at(-1)).toBe(ApprovalState.APPROVED);

    const issued = held(await issue(aide, child.taskId, { arguments: north }));
    expect(await loginRefusal(loginOf(issued))).toBeUndefined();
    expect(await stateOf(name)).toMatchObject({ state: ApprovalState.USED, usesLeft: 0 });
    const events = await auditOf(estate, child.taskId);
    expect(events.find(({ kind, leaseId }) => kind === 'decision.made' && leaseId !== '')!.detail).toMatchObject({
      approval: name,
      approval_held_by: parent.taskId,
      reason: `approval ${name}, held by task ${parent.taskId}`,
    });
    expect(events.find(({ kind }) => kind === 'approval.used')).toMatchObject({
      leaseId: issued.lease.leaseId,
      detail: { approval: name, held_by: parent.taskId, for_agent: 'aide' },
    });
    const requested = (await auditOf(estate, parent.taskId)).find(({ kind }) => kind === 'approval.requested');
    expect(requested!.detail).toMatchObject({ approval: name, for_agent: 'aide', held_by: parent.taskId });
    const decision = events.find(({ kind, leaseId }) => kind === 'decision.made' && leaseId !== '')!;
    const explained = await estate.policy.explainDecision({
      subject: { case: 'decisionId', value: String(decision.detail!['decision_id']) },
    });
    expect(explained).toMatchObject({ effect: Effect.ALLOW, reproduced: true });

    // What is kept as evidence of the task below has it, too.
    let evidence = '';
    for await (const { part } of estate.audit.exportEvidence({ taskId: child.taskId })) {
      if (part.case === 'lines') evidence += part.value;
    }
    const approvals = evidence
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>)
      .filter(({ type }) => type === 'approval');
    expect(approvals).toMatchObject([{ approval_id: name, task_id: parent.taskId, parent_agent: 'chief' }]);

    // Twice is once too often: people are asked anew, for the task itself.
    const twice = await refusedWithoutTrace(aide, child.taskId, { arguments: north });
    expect(twice.reason).toBe('APPROVAL_REQUIRED');
    expect(twice.metadata['approval']).not.toBe(name);
    expect(await refusedWithoutTrace(aide, child.taskId, { arguments: north, approval: name })).toMatchObject({
      reason: 'APPROVAL_USED',
    });
    await estate.tasks('orchestrator').closeTask({ taskId: parent.taskId, wait: true });
    expect(await roleExists(estate.estate, loginOf(issued).username)).toBe(false);
  });

  test('covers no other arguments, tool, tier or revision', async () => {
    const parent = await openParent();
    const child = await openAide(parent.taskId);
    const name = await agreed(parent.taskId);
    const named = (wanted: object) => refusedWithoutTrace(aide, child.taskId, { approval: name, ...wanted });
    for (const wanted of [{ region: 'south' }, {}]) {
      expect(await named({ arguments: wanted })).toMatchObject({
        reason: 'APPROVAL_MISMATCH',
        metadata: { differs: 'arguments' },
      });
    }
    expect(await named(settle)).toMatchObject({ reason: 'APPROVAL_MISMATCH', metadata: { differs: 'tool' } });
    const unnamed = await refusedWithoutTrace(aide, child.taskId, { arguments: { region: 'south' } });
    expect(unnamed.metadata['approval']).not.toBe(name);
    await sql(
      estate.estate.databaseUrl,
      `UPDATE leasehold.approvals SET policy_revision = 'x' WHERE approval_id = $1`,
      [name],
    );
    expect(await named({ arguments: north })).toMatchObject({ metadata: { differs: 'policy_revision' } });
    expect((await stateOf(name)).usesLeft).toBe(1);
  });

  test('covers neither the task that holds it, nor one further down, nor one below it of another agent, nor another tree', async () => {
    const parent = await openParent();
    const child = await openAide(parent.taskId);
    const grandchild = await openAide(child.taskId, 'agent/aide/2', aide);
    const sibling = await openChild(estate, chief, parent.taskId, {
      agent: 'scribe',
      agentWorkload: devWorkload('agent/scribe/1'),
      tools: [sales],
    });
    const elsewhere = await openParent();
    const stranger = await openAide(elsewhere.taskId, 'agent/aide/3');
    const name = await agreed(parent.taskId);
    const wanted = { arguments: north, approval: name };
    for (const [workload, taskId] of [
      ['agent/aide/2', grandchild.taskId],
      ['agent/scribe/1', sibling.taskId],
      ['agent/aide/3', stranger.taskId],
    ] as const) {
      // They are not even told that there is one.
      expect(await refusedWithoutTrace(workload, taskId, wanted)).toMatchObject({ reason: 'APPROVAL_NOT_FOUND' });
      expect(await refusal(estate.approvals(workload).getApproval({ approvalId: name }))).toMatchObject({
        reason: 'APPROVAL_NOT_FOUND',
      });
      const listed = await estate.approvals(workload).listApprovals({ taskId: parent.taskId });
      expect(listed.approvals).toEqual([]);
      const own = await refusedWithoutTrace(workload, taskId, { arguments: north });
      expect(own).toMatchObject({ reason: 'APPROVAL_REQUIRED' });
      expect(own.metadata['approval']).not.toBe(name);
    }
    // Who is a party to it sees it.
    for (const workload of [chief, aide, 'orchestrator', gus]) {
      const listed = await estate.approvals(workload).listApprovals({ taskId: parent.taskId });
      expect(listed.approvals.map(({ approvalId }) => approvalId)).toEqual([name]);
      await estate.approvals(workload).getApproval({ approvalId: name });
    }
    // The same workload, by a task of its own further down.
    const deeper = await openAide(child.taskId, aide, aide);
    expect(await refusedWithoutTrace(aide, deeper.taskId, wanted)).toMatchObject({
      reason: 'APPROVAL_MISMATCH',
      metadata: { differs: 'task' },
    });
    held(await issue(aide, child.taskId, wanted));
  });

  test('is not for the task itself, when its agent could be that of one below', async () => {
    const parent = await openParent();
    const middle = await openAide(parent.taskId);
    const { approval } = await ask(middle.taskId, { agent: 'aide', arguments: north }, aide);
    const name = approval!.approvalId;
    await decide(gus, name);
    expect(await refusedWithoutTrace(aide, middle.taskId, { arguments: north, approval: name })).toMatchObject({
      reason: 'APPROVAL_MISMATCH',
      metadata: { differs: 'task' },
    });
    const own = await refusedWithoutTrace(aide, middle.taskId, { arguments: north });
    expect(own.metadata['approval']).not.toBe(name);
    const below = await openAide(middle.taskId, 'agent/aide/2', aide);
    held(await issue('agent/aide/2', below.taskId, { arguments: north }));
  });

  test('is decided by nobody who has a hand in the work above or below', async () => {
    const parent = await openParent();
    const { approval } = await ask(parent.taskId, { agent: 'aide', arguments: north });
    const name = approval!.approvalId;
    const child = await openAide(parent.taskId);
    for (const person of ['orchestrator', chief, 'agent/chief/9', aide, 'agent/aide/9']) {
      const refused = await refusal(decide(person, name));
      expect(['APPROVER_INELIGIBLE', 'APPROVAL_NOT_FOUND']).toContain(refused.reason);
      const listed = await estate.approvals(person).listApprovals({ states: [ApprovalState.PENDING] });
      const parties = ['orchestrator', chief, aide];
      expect(listed.approvals.some(({ approvalId }) => approvalId === name)).toBe(parties.includes(person));
    }
    expect(await stateOf(name)).toMatchObject({ state: ApprovalState.PENDING, votes: [] });
    expect(await leasesOf(child.taskId)).toEqual([]);
  });

  test('has its uses shared by the tasks below of that agent', async () => {
    const parent = await openParent();
    const [one, two] = [await openAide(parent.taskId), await openAide(parent.taskId, 'agent/aide/2')];
    const name = await agreed(parent.taskId, settle);
    expect((await stateOf(name)).uses).toBe(2);
    held(await issue(aide, one.taskId, settle));
    held(await issue('agent/aide/2', two.taskId, { ...settle, approval: name }));
    expect(await stateOf(name)).toMatchObject({ state: ApprovalState.USED });
    expect(await refusedWithoutTrace('agent/aide/2', two.taskId, { ...settle, approval: name })).toMatchObject({
      reason: 'APPROVAL_USED',
    });
    const uses = await sql(
      estate.estate.databaseUrl,
      'SELECT l.task_id FROM leasehold.approval_uses u JOIN leasehold.leases l USING (tenant, lease_id) WHERE u.approval_id = $1 ORDER BY 1',
      [name],
    );
    expect(uses.map(({ task_id: taskId }) => taskId)).toEqual([one.taskId, two.taskId].sort());
  });

  test('makes one credential for twenty tasks below that come at once on two replicas', async () => {
    const parent = await openParent();
    const children = await Promise.all(
      Array.from({ length: 20 }, async (_, n) => ({
        workload: `agent/aide/${n}`,
        taskId: (await openAide(parent.taskId, `agent/aide/${n}`)).taskId,
      })),
    );
    const name = await agreed(parent.taskId);
    const results = await Promise.allSettled(
      children.map(({ workload, taskId }, n) =>
        issue(workload, taskId, { arguments: north, approval: name }, estate.ports[n % 2]),
      ),
    );
    const issued = results.flatMap((result) => (result.status === 'fulfilled' ? [held(result.value)] : []));
    expect(issued).toHaveLength(1);
    for (const result of results) {
      if (result.status === 'rejected') {
        expect(await refusal(Promise.reject(result.reason as Error))).toMatchObject({ reason: 'APPROVAL_USED' });
      }
    }
    const leases = await leasesOf(...children.map(({ taskId }) => taskId));
    expect(leases.map(({ lease_id: id }) => id)).toEqual([issued[0]!.lease.leaseId]);
    expect(await loginRefusal(loginOf(issued[0]!))).toBeUndefined();
  });

  test('is there again when the target could not make the credential', async () => {
    const parent = await openParent();
    const child = await openAide(parent.taskId);
    const name = await agreed(parent.taskId);
    const { user } = estate.estate.target;
    await sql(estate.estate.targetUrl, `ALTER ROLE ${user} CONNECTION LIMIT 0`);
    await sql(
      estate.estate.targetUrl,
      `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '${user}'`,
    );
    try {
      expect(await refusal(issue(aide, child.taskId, { arguments: north }))).toMatchObject({
        reason: 'PROVIDER_UNAVAILABLE',
      });
    } finally {
      await sql(estate.estate.targetUrl, `ALTER ROLE ${user} CONNECTION LIMIT -1`);
    }
    expect(await stateOf(name)).toMatchObject({ state: ApprovalState.APPROVED, usesLeft: 1 });
    await expect
      .poll(async () => (await issue(aide, child.taskId, { arguments: north }).catch(() => undefined))?.credential, {
        timeout: 20_000,
      })
      .toBeDefined();
    expect(await stateOf(name)).toMatchObject({ state: ApprovalState.USED });
  });
});

describe('what people were asked ahead of time', () => {
  test.each([
    ['context', { context: { env: 'live' } }],
    ['labels', { labels: { env: 'prod' } }],
  ])('does not cover a task below that needs more of them, by its %s', async (_what, stated) => {
    const parent = await openParent();
    const name = await agreed(parent.taskId, settle);
    const child = await openAide(parent.taskId, aide, chief, stated);
    expect(await refusedWithoutTrace(aide, child.taskId, { ...settle, approval: name })).toMatchObject({
      reason: 'APPROVAL_MISMATCH',
      metadata: { differs: 'terms' },
    });
    const own = await refusedWithoutTrace(aide, child.taskId, settle);
    expect(own).toMatchObject({ reason: 'APPROVAL_REQUIRED' });
    expect(own.metadata['approval']).not.toBe(name);
    // Asked with what it will be opened with, it is the right people.
    const live = await openParent();
    const right = await agreed(live.taskId, { ...settle, ...stated }, [gus, gil]);
    expect((await stateOf(right)).quorums.map(({ count }) => count).sort()).toEqual([1, 2]);
    const second = await openAide(live.taskId, aide, chief, stated);
    held(await issue(aide, second.taskId, { ...settle, approval: right }));
  });

  test('and was refused is refused to the tasks below; a refusal to one of those stands against it', async () => {
    const parent = await openParent();
    const child = await openAide(parent.taskId);
    const { approval } = await ask(parent.taskId, { agent: 'aide', arguments: north });
    await decide(gus, approval!.approvalId, Verdict.DENY);
    expect(await refusedWithoutTrace(aide, child.taskId, { arguments: north })).toMatchObject({
      reason: 'APPROVAL_DENIED',
      metadata: { approval: approval!.approvalId },
    });

    const east = { arguments: { region: 'east' } };
    const own = await refusedWithoutTrace(aide, child.taskId, east);
    await decide(gus, own.metadata['approval']!, Verdict.DENY);
    const name = await agreed(parent.taskId, east, [gil]);
    for (const wanted of [east, { ...east, approval: name }]) {
      expect(await refusedWithoutTrace(aide, child.taskId, wanted)).toMatchObject({
        reason: 'APPROVAL_DENIED',
        metadata: { approval: own.metadata['approval'] },
      });
    }
    // To another task below nobody has refused it.
    const other = await openAide(parent.taskId, 'agent/aide/2');
    held(await issue('agent/aide/2', other.taskId, east));
  });

  test('is told apart from what is allowed or refused anyway, without a question to anybody', async () => {
    const parent = await openParent();
    const { results } = await estate.approvals(chief).requestApprovals({
      taskId: parent.taskId,
      actions: [
        { ...access.reports, agent: 'aide' },
        { ...access.reports, agent: 'helper' },
        { tool: 'sales', tier: Tier.WRITE, agent: 'aide' },
        { ...sales, agent: 'aide', arguments: north },
        { ...sales, agent: 'scribe', arguments: north },
      ],
    });
    expect(results.map(({ effect }) => effect)).toEqual([
      Effect.ALLOW,
      Effect.DENY,
      Effect.DENY,
      Effect.NEEDS_APPROVAL,
      Effect.NEEDS_APPROVAL,
    ]);
    expect(results[1]!.reason).toContain('does not delegate to agent helper');
    expect(results[2]!.reason).toContain('no rule allows agent aide');
    const [forAide, forScribe] = [results[3]!.approval!, results[4]!.approval!];
    expect(forAide.groupId).toBe(forScribe.groupId);
    expect([forAide.agent, forScribe.agent]).toEqual(['aide', 'scribe']);
    const actions = (action: object) =>
      estate.approvals(chief).requestApprovals({ taskId: parent.taskId, actions: [{ ...sales, ...action }] });
    expect(await refusal(actions({ agent: 'nobody' }))).toMatchObject({
      reason: 'NAME_UNKNOWN',
      fields: ['actions[0].agent'],
    });
    expect(await refusal(actions({ context: { env: 'live' } }))).toMatchObject({ fields: ['actions[0].context'] });
    expect(await refusal(actions({ labels: { env: 'prod' } }))).toMatchObject({ fields: ['actions[0].labels'] });
    // Nobody but its agent and its opener asks in a task's name.
    expect(await refusal(ask(parent.taskId, { agent: 'aide' }, aide))).toMatchObject({ reason: 'TASK_NOT_FOUND' });
  });
});

describe('when the task that holds it', () => {
  test('closes, what it holds ends with it and is of no use to anybody', async () => {
    const parent = await openParent();
    const child = await openAide(parent.taskId);
    const name = await agreed(parent.taskId);
    await estate.tasks('orchestrator').closeTask({ taskId: parent.taskId });
    expect(await refusedWithoutTrace(aide, child.taskId, { arguments: north, approval: name })).toMatchObject({
      reason: 'TASK_CLOSED',
    });
    await expect.poll(async () => (await stateOf(name)).state).toBe(ApprovalState.CANCELLED);
    expect(await refusal(ask(parent.taskId, { agent: 'aide', arguments: north }))).toMatchObject({
      reason: 'TASK_CLOSED',
    });
  });

  test('is handed over, whoever has it then has nothing of it', async () => {
    const parent = await openParent();
    const name = await agreed(parent.taskId);
    await estate.tasks('operator').handOverTask({
      requestId: randomUUID(),
      taskId: parent.taskId,
      agent: 'chief',
      agentWorkload: devWorkload('agent/chief/2'),
      justification: 'shift',
    });
    expect((await stateOf(name)).state).toBe(ApprovalState.CANCELLED);
    const child = await openAide(parent.taskId, aide, 'agent/chief/2');
    expect(await refusedWithoutTrace(aide, child.taskId, { arguments: north, approval: name })).toMatchObject({
      reason: 'APPROVAL_SETTLED',
    });
    const own = await refusedWithoutTrace(aide, child.taskId, { arguments: north });
    expect(own).toMatchObject({ reason: 'APPROVAL_REQUIRED' });
    expect(own.metadata['approval']).not.toBe(name);
  });
});
