import { cp, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ApprovalService, ApprovalState, Verdict } from '../../src/gen/leasehold/v1/approval_service_pb.js';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { devWorkload } from '../../src/dev/environment.ts';
import { held, loginOf, loginRefusal, refusal, roleExists, sql } from '../e2e/support.ts';
import { createEstate, startProcess, type TestEstate } from '../support/broker.ts';
import { people } from './support.ts';

const login = { tool: 'warehouse', tier: Tier.READ };
/** Decided on what storage counts, so that a token has two steps as well. */
const counted = { tool: 'shop', tier: Tier.EXECUTE };
const policy = `
apiVersion: leasehold.dev/v1
kind: Policy
metadata: { name: crash, owner: tests@leasehold.test }
spec:
  rules:
    - name: logins
      agents: [analyst]
      tools: [warehouse]
      tiers: [read]
      effect: require_approval
      obligations: { approval: { approvers: [security] } }
    - name: counted
      agents: [twin]
      tools: [shop]
      tiers: [execute]
      effect: require_approval
      obligations: { maxUses: 1, approval: { approvers: [security] } }
`;

let estate: TestEstate;
beforeAll(async () => {
  estate = await createEstate('crash', {
    approvals: {
      groups: {
        security: [devWorkload(people.guard)],
        'door-owners': [devWorkload(people.owner)],
        'shop-owners': [devWorkload(people.clerk)],
      },
    },
  });
  await cp(path.join(import.meta.dirname, 'fixtures', 'approvals.yaml'), path.join(estate.policyDir, 'approvals.yaml'));
  await writeFile(path.join(estate.policyDir, 'crash.yaml'), policy);
});
afterAll(() => estate.remove());

test.each([
  ['a login at a target', login, 'analyst'],
  ['a token that is counted', counted, 'twin'],
])('a broker that dies before it hands out %s gives the use of its approval back', async (_what, access, agentName) => {
  const tasks = estate.client(TaskService, 'orchestrator');
  const agent = estate.client(CredentialService, `agent/${agentName}`);
  const approvals = estate.client(ApprovalService, people.guard);

  const dying = await startProcess(estate, { killAt: 'issue.pending-committed' });
  const { task } = await tasks.openTask({ intent: 'a crash', agent: agentName, tools: [access] });
  const { taskId } = task!;
  const asked = await refusal(agent.issueCredential({ taskId, ...access }));
  const approvalId = asked.metadata['approval']!;
  await approvals.decideApproval({ approvalId, verdict: Verdict.APPROVE });
  await agent.issueCredential({ taskId, ...access, approval: approvalId }).catch(() => undefined);
  expect((await dying.exited).signal).toBe('SIGKILL');
  const [left] = await sql(
    estate.databaseUrl,
    `SELECT l.lease_id, l.handle, l.state, a.state AS approval, a.uses_left FROM leasehold.leases l, leasehold.approvals a
     WHERE l.task_id = $1 AND a.approval_id = $2`,
    [taskId, approvalId],
  );
  expect(left).toMatchObject({ state: 'pending', approval: 'used', uses_left: 0 });

  // As if the time that the attempt may take were over.
  await sql(estate.databaseUrl, 'UPDATE leasehold.leases SET settle_at = now() WHERE task_id = $1', [taskId]);
  const broker = await startProcess(estate);
  try {
    await expect
      .poll(async () => (await approvals.getApproval({ approvalId })).approval, { timeout: 15_000 })
      .toMatchObject({ state: ApprovalState.APPROVED, usesLeft: 1 });
    await expect
      .poll(
        async () =>
          await sql(estate.databaseUrl, 'SELECT state, settle_cause FROM leasehold.leases WHERE task_id = $1', [
            taskId,
          ]),
        { timeout: 15_000 },
      )
      .toEqual([{ state: 'settled', settle_cause: 'abandoned' }]);
    const issued = held(await agent.issueCredential({ taskId, ...access, approval: approvalId }));
    if (access === login) {
      expect(await roleExists(estate, String(left!['handle']).split('/').at(-1)!)).toBe(false);
      expect(await loginRefusal(loginOf(issued))).toBeUndefined();
    }
    // One use, once.
    const again = await refusal(agent.issueCredential({ taskId, ...access, approval: approvalId }));
    expect(['APPROVAL_USED', 'POLICY_DENIED']).toContain(again.reason);
  } finally {
    await broker.stop();
  }
});
