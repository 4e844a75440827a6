import { createRemoteJWKSet, jwtVerify } from 'jose';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { devWorkload } from '../../src/dev/environment.ts';
import { Effect, Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { createVerifier } from '../../src/verifier/index.ts';
import { auditOf, editPolicy, held, ms, refusal, sql, tokenOf } from '../e2e/support.ts';
import { access, openChild, openRoot, startEstate, type Estate } from './support.ts';

let estate: Estate;
beforeAll(async () => {
  estate = await startEstate('rights');
});
afterAll(() => estate.stop());

const lead = 'agent/lead/1';
const helper = 'agent/helper/1';

async function leasesOf(taskId: string) {
  return await sql(estate.estate.databaseUrl, 'SELECT * FROM leasehold.leases WHERE task_id = $1', [taskId]);
}

describe('a task below another is opened', () => {
  test('by its agent, whose attestation pins the parent, and says what it may do', async () => {
    const root = await openRoot(estate, 'lead', { agentWorkload: '' });
    const { task, plan } = await estate.tasks('agent/lead/7').openTask({
      parentTaskId: root.taskId,
      intent: 'count',
      agent: 'helper',
      tools: [access.reports, access.settle],
    });
    expect(task).toMatchObject({
      parentTaskId: root.taskId,
      rootTaskId: root.taskId,
      opener: devWorkload('agent/lead/7'),
    });
    expect(task!.taskId > root.taskId).toBe(true);
    expect(ms(task!.deadline)).toBeLessThanOrEqual(ms(root.deadline));
    // The helper alone would have ten minutes, and would need nobody's approval.
    expect(plan).toMatchObject([
      { effect: Effect.ALLOW, ttl: { seconds: 180n }, policyRule: 'delegation/lead-reads' },
      { effect: Effect.NEEDS_APPROVAL, policyRule: 'delegation/lead-asks', reason: expect.stringContaining('lead') },
    ]);
    const { task: parent } = await estate.tasks('orchestrator').getTask({ taskId: root.taskId });
    expect(parent!.agentWorkload).toBe(devWorkload('agent/lead/7'));
    const [opened] = await auditOf(estate, task!.taskId);
    expect(opened).toMatchObject({ kind: 'task.opened', detail: { parent: root.taskId, root: root.taskId } });
  });

  test('by whoever opened the parent, once that is pinned', async () => {
    const pinned = await openRoot(estate, 'lead');
    const child = await openChild(estate, 'orchestrator', pinned.taskId);
    expect(child.parentTaskId).toBe(pinned.taskId);
    const unpinned = await openRoot(estate, 'lead', { agentWorkload: '' });
    expect(await refusal(openChild(estate, 'orchestrator', unpinned.taskId))).toMatchObject({
      code: 'PermissionDenied',
      reason: 'DELEGATION_REFUSED',
      metadata: { because: 'workload' },
    });
  });

  test('once, however often it is asked for with the same request_id', async () => {
    const root = await openRoot(estate, 'lead');
    const requestId = crypto.randomUUID();
    const first = await openChild(estate, lead, root.taskId, { requestId });
    await estate.tasks('orchestrator').closeTask({ taskId: root.taskId });
    const again = await openChild(estate, lead, root.taskId, { requestId });
    expect(again.taskId).toBe(first.taskId);
    expect(await refusal(openChild(estate, lead, root.taskId, { requestId, intent: 'other' }))).toMatchObject({
      reason: 'TASK_CLOSED',
    });
  });
});

describe('a task below another is refused', () => {
  test.each([
    ['an agent that its own does not delegate to', { agent: 'link', agentWorkload: '' }, 'agent'],
    ['a tool that its parent has not', { tools: [{ tool: 'reports', tier: Tier.WRITE }] }, 'tool'],
  ])('with %s', async (_what, change, because) => {
    const root = await openRoot(estate, 'lead');
    const refused = await refusal(openChild(estate, lead, root.taskId, change));
    expect(refused).toMatchObject({ code: 'PermissionDenied', reason: 'DELEGATION_REFUSED', metadata: { because } });
    expect(refused.fields).toHaveLength(1);
  });

  test('to an agent of whose delegation nothing is declared', async () => {
    const root = await openRoot(estate, 'loner', { agentWorkload: '', tools: [access.reports] });
    expect(await refusal(openChild(estate, 'agent/loner', root.taskId))).toMatchObject({
      reason: 'DELEGATION_REFUSED',
      metadata: { because: 'not_declared' },
    });
  });

  test('deeper than any above it allows', async () => {
    const root = await openRoot(estate, 'lead');
    const child = await openChild(estate, lead, root.taskId);
    const grandchild = await openChild(estate, helper, child.taskId);
    const refused = await refusal(openChild(estate, helper, grandchild.taskId));
    expect(refused).toMatchObject({ reason: 'DELEGATION_REFUSED', metadata: { because: 'depth' } });
  });

  test('beyond the number of children, also when they come at once on two replicas', async () => {
    const root = await openRoot(estate, 'lead');
    const open = (port: number) =>
      estate.tasks(lead, port).openTask({
        parentTaskId: root.taskId,
        intent: 'many',
        agent: 'helper',
        tools: [access.reports],
      });
    const results = await Promise.allSettled(Array.from({ length: 12 }, (_, n) => open(estate.ports[n % 2]!)));
    expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(3);
    expect(await refusal(open(estate.ports[0]))).toMatchObject({ metadata: { because: 'children' } });
    const [child] = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value.task!] : []));
    await estate.tasks(lead).closeTask({ taskId: child!.taskId });
    await open(estate.ports[1]);
  });

  test('with a deadline behind its parent’s', async () => {
    const root = await openRoot(estate, 'lead');
    const late = timestampFromMs(ms(root.deadline) + 1_000);
    expect(await refusal(openChild(estate, lead, root.taskId, { deadline: late }))).toMatchObject({
      reason: 'FIELD_INVALID',
      fields: ['deadline'],
    });
  });

  test('below a closed one, below somebody else’s, and to an agent without a task of its own', async () => {
    const root = await openRoot(estate, 'lead');
    expect(await refusal(openChild(estate, 'agent/lead/2', root.taskId))).toMatchObject({ reason: 'TASK_NOT_FOUND' });
    expect(await refusal(openChild(estate, helper, root.taskId))).toMatchObject({ reason: 'TASK_NOT_FOUND' });
    const unknown = `tsk_${'0'.repeat(32)}`;
    expect(await refusal(openChild(estate, lead, unknown))).toMatchObject({ reason: 'TASK_NOT_FOUND' });
    expect(await refusal(openChild(estate, lead, ''))).toMatchObject({ reason: 'ROLE_REQUIRED' });
    await estate.tasks('orchestrator').closeTask({ taskId: root.taskId });
    expect(await refusal(openChild(estate, lead, root.taskId))).toMatchObject({ reason: 'TASK_CLOSED' });
  });
});

describe('what a task below others may do', () => {
  test('is decided anew at each credential by all above it, and the record says who decided', async () => {
    const root = await openRoot(estate, 'lead');
    const child = await openChild(estate, lead, root.taskId, {
      tools: [access.reports, access.ledger],
    });
    const issue = (more: object) => estate.credentials(helper).issueCredential({ taskId: child.taskId, ...more });
    const { lease } = held(await issue(access.reports));
    // The lead's three minutes, not the helper's ten.
    expect(ms(lease.expireTime) - ms(lease.issueTime)).toBe(180_000);
    expect(lease.policyRule).toBe('delegation/lead-reads');
    const events = await auditOf(estate, child.taskId);
    expect(events.find(({ kind }) => kind === 'decision.made')!.detail).toMatchObject({
      decided_by: root.taskId,
      asked: { agent: 'helper', above: [{ agent: 'lead', workload: devWorkload(lead) }] },
    });
    // The lead's limit on an argument holds for whoever works for it.
    await issue({ ...access.ledger, arguments: { amount: 100 } });
    const refused = await refusal(issue({ ...access.ledger, arguments: { amount: 101 } }));
    expect(refused).toMatchObject({ reason: 'POLICY_DENIED', metadata: { decided_by: root.taskId } });
    expect(refused.message).toContain('agent lead');
    const explained = await estate.policy.explainDecision({
      subject: { case: 'decisionId', value: refused.metadata['decision']! },
    });
    expect(explained.reproduced).toBe(true);
    expect(explained.rules).toMatchObject([
      { rule: 'delegation/helper-ledger', taskId: '', decided: false },
      { rule: 'delegation/lead-limits', taskId: root.taskId, decided: true },
    ]);
  });

  test('needs an approval of its own where one above needs one, and nothing inherits the parent’s', async () => {
    const root = await openRoot(estate, 'lead');
    const child = await openChild(estate, lead, root.taskId, { tools: [access.settle] });
    const asked = await refusal(estate.credentials(lead).issueCredential({ taskId: root.taskId, ...access.settle }));
    const parents = asked.metadata['approval']!;
    await estate.approvals('approver/lena').decideApproval({ approvalId: parents, verdict: 1 });
    const issue = (approval: string) =>
      estate.credentials(helper).issueCredential({ taskId: child.taskId, ...access.settle, approval });
    expect(await refusal(issue(parents))).toMatchObject({ reason: 'APPROVAL_NOT_FOUND' });
    const own = await refusal(issue(''));
    expect(own).toMatchObject({ reason: 'APPROVAL_REQUIRED' });
    expect(own.metadata['approval']).not.toBe(parents);
    expect(await leasesOf(child.taskId)).toEqual([]);
    // The owner of the lead is asked, whose rule it is, not the helper's.
    const approval = { approvalId: own.metadata['approval']!, verdict: 1 };
    expect(await refusal(estate.approvals('approver/hanna').decideApproval(approval))).toMatchObject({
      reason: 'APPROVAL_NOT_FOUND',
    });
    await estate.approvals('approver/lena').decideApproval(approval);
    held(await issue(''));
    expect(await leasesOf(child.taskId)).toHaveLength(1);
  });

  test('is not widened at any level of the tree', async () => {
    const root = await openRoot(estate, 'lead', { tools: [access.reports] });
    const child = await openChild(estate, lead, root.taskId);
    const grandchild = await openChild(estate, helper, child.taskId);
    for (const [parent, opener] of [
      [root, lead],
      [child, helper],
    ] as const) {
      const wider = openChild(estate, opener, parent.taskId, { tools: [access.publish] });
      expect(await refusal(wider)).toMatchObject({ reason: 'DELEGATION_REFUSED' });
    }
    for (const taskId of [child.taskId, grandchild.taskId]) {
      for (const wanted of [access.publish, access.warehouse]) {
        expect(await refusal(estate.credentials(helper).issueCredential({ taskId, ...wanted }))).toMatchObject({
          reason: 'POLICY_DENIED',
        });
      }
      // By hand, as a row that somebody tampered with: those above are asked all the same.
      const wide = JSON.stringify([
        { tool: 'reports', tier: 'read' },
        { tool: 'reports', tier: 'write' },
      ]);
      await sql(
        estate.estate.databaseUrl,
        'UPDATE leasehold.tasks SET tools = $1, epoch = epoch + 1 WHERE task_id = $2',
        [wide, taskId],
      );
    }
    await estate
      .tasks('orchestrator')
      .extendTask({ taskId: root.taskId, deadline: timestampFromMs(Date.now() + 600_000) });
    for (const taskId of [child.taskId, grandchild.taskId]) {
      const refused = await refusal(
        estate.credentials(helper, estate.ports[1]).issueCredential({ taskId, ...access.publish }),
      );
      expect(refused).toMatchObject({ reason: 'POLICY_DENIED' });
      expect(refused.message).toContain('above it did not ask for');
      expect(await leasesOf(taskId)).toEqual([]);
    }
  });

  test('ends when policy takes the delegation away', async () => {
    const root = await openRoot(estate, 'link', { tools: [access.reports] });
    const workload = 'agent/link/2';
    const child = await openChild(estate, 'agent/link/1', root.taskId, {
      agent: 'link',
      agentWorkload: devWorkload(workload),
    });
    const { lease } = held(
      await estate.credentials(workload).issueCredential({ taskId: child.taskId, ...access.reports }),
    );
    const served = { estate: estate.estate, admin: estate.admin };
    await editPolicy(served, 'delegation.yaml', (text) =>
      text.replace('{ to: [link], maxDepth: 8', '{ to: [loner], maxDepth: 8'),
    );
    const renewal = await refusal(estate.credentials(workload).renewCredential({ leaseId: lease.leaseId }));
    expect(renewal.reason).toBe('RENEWAL_REFUSED');
    expect(renewal.message).toContain('does not delegate to agent link');
    await editPolicy(served, 'delegation.yaml', (text) =>
      text.replace('{ to: [loner], maxDepth: 8', '{ to: [link], maxDepth: 8'),
    );
  });
});

describe('the token of a task below others', () => {
  test('names every hop in act, at the deepest level, within the bound of its size', async () => {
    const workload = (level: number) => `agent/link/level-${level}`;
    const root = await openRoot(estate, 'link', {
      agentWorkload: devWorkload(workload(0)),
      tools: [access.reports],
    });
    let task = root;
    for (let level = 1; level <= 8; level++) {
      task = await openChild(estate, workload(level - 1), task.taskId, {
        agent: 'link',
        agentWorkload: devWorkload(workload(level)),
      });
    }
    const below = openChild(estate, workload(8), task.taskId, { agent: 'link', agentWorkload: '' });
    expect(await refusal(below)).toMatchObject({ metadata: { because: 'depth' } });

    const answer = await estate.credentials(workload(8)).issueCredential({ taskId: task.taskId, ...access.reports });
    const token = tokenOf(held(answer));
    expect(token.length).toBeLessThanOrEqual(2_048);
    const jwks = new URL('/.well-known/jwks.json', estate.estate.httpUrl);
    const audience = 'https://reports.dev.leasehold.test';
    const { payload } = await jwtVerify(token, createRemoteJWKSet(jwks), {
      issuer: estate.estate.httpUrl,
      audience,
      typ: 'at+jwt',
    });
    const actors: string[] = [];
    for (let act = payload['act'] as { sub: string; act?: object } | undefined; act; act = act.act as typeof act) {
      actors.push(act.sub);
    }
    expect(actors).toEqual([8, 7, 6, 5, 4, 3, 2, 1, 0].map((level) => devWorkload(workload(level))));
    expect(payload.sub).toBe(devWorkload(workload(8)));
    expect(payload['root_task_id']).toBe(root.taskId);
    const verified = await createVerifier({ issuer: estate.estate.httpUrl, audience, jwks, feed: 'none' }).verify(
      token,
    );
    expect(verified.delegatedBy).toEqual(actors.slice(1));
    expect(verified.workload).toBe(actors[0]);
  });

  test('of a root has no act', async () => {
    const root = await openRoot(estate, 'lead');
    const answer = await estate.credentials(lead).issueCredential({ taskId: root.taskId, ...access.reports });
    const claims = JSON.parse(Buffer.from(tokenOf(held(answer)).split('.')[1]!, 'base64url').toString());
    expect(claims).not.toHaveProperty('act');
  });
});

describe('the deadline of a task below another', () => {
  test('follows when the parent’s is moved ahead, in every row of the subtree, and is not moved back with it', async () => {
    const root = await openRoot(estate, 'lead');
    const child = await openChild(estate, lead, root.taskId);
    const grandchild = await openChild(estate, helper, child.taskId);
    // In the memory of both replicas, with the deadline that it has.
    for (const port of estate.ports) {
      await estate.credentials(helper, port).issueCredential({ taskId: grandchild.taskId, ...access.reports });
    }
    const soon = Date.now() + 120_000;
    const tasks = estate.tasks('orchestrator');
    await tasks.extendTask({ taskId: root.taskId, deadline: timestampFromMs(soon) });
    const deadlines = async () =>
      (
        await sql(estate.estate.databaseUrl, 'SELECT deadline FROM leasehold.tasks WHERE root_task_id = $1', [
          root.taskId,
        ])
      ).map(({ deadline }) => (deadline as Date).getTime());
    expect(await deadlines()).toEqual([soon, soon, soon]);
    for (const port of estate.ports) {
      const { lease } = held(
        await estate.credentials(helper, port).issueCredential({ taskId: grandchild.taskId, ...access.reports }),
      );
      expect(ms(lease.expireTime)).toBeLessThanOrEqual(soon);
    }
    await tasks.extendTask({ taskId: root.taskId, deadline: timestampFromMs(soon + 60_000) });
    expect((await deadlines()).sort()).toEqual([soon, soon, soon + 60_000]);
    const extended = (await auditOf(estate, grandchild.taskId)).filter(({ kind }) => kind === 'task.extended');
    expect(extended).toMatchObject([{ detail: { because: root.taskId } }]);
    // Its opener moves it, within the parent's.
    const late = { taskId: child.taskId, deadline: timestampFromMs(soon + 61_000) };
    expect(await refusal(estate.tasks(lead).extendTask(late))).toMatchObject({ reason: 'FIELD_INVALID' });
    await estate.tasks(lead).extendTask({ ...late, deadline: timestampFromMs(soon + 60_000) });
    expect((await deadlines()).sort()).toEqual([soon, soon + 60_000, soon + 60_000]);
  });
});
