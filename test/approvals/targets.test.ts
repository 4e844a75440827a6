import { afterAll, beforeAll, expect, test } from 'vitest';
import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { ApprovalState } from '../../src/gen/leasehold/v1/approval_service_pb.js';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { held, loginOf, loginRefusal, refusal, sql } from '../e2e/support.ts';
import { approve, askFor, openTask, people, serve, type Served } from './support.ts';

const policy = `
apiVersion: leasehold.dev/v1
kind: Policy
metadata: { name: logins, owner: tests@leasehold.test }
spec:
  rules:
    - name: people-first
      agents: [analyst]
      tools: [warehouse]
      tiers: [read]
      effect: require_approval
      obligations: { approval: { approvers: [security] } }
`;
const login = { tool: 'warehouse', tier: Tier.READ };

let served: Served;
beforeAll(async () => {
  served = await serve('approvedb');
});
afterAll(async () => {
  await served.stop();
});

test('a login at a target takes its one use; when the target could not make it, the use is there again', async () => {
  const before = (await served.admin.getStatus({})).policyRevision;
  await writeFile(path.join(served.estate.policyDir, 'logins.yaml'), policy);
  await expect
    .poll(async () => (await served.admin.getStatus({})).policyRevision, { timeout: 10_000 })
    .not.toBe(before);

  const taskId = await openTask(served, { tools: [login] });
  const { name } = await askFor(served, { taskId, ...login });
  await approve(served, people.guard, name);

  // The broker may not log in at its target for a while.
  const user = served.estate.target.user;
  await sql(served.estate.targetUrl, `ALTER ROLE ${user} CONNECTION LIMIT 0`);
  await sql(
    served.estate.targetUrl,
    `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '${user}'`,
  );
  expect(await refusal(served.agent.issueCredential({ taskId, ...login, approval: name }))).toMatchObject({
    reason: 'PROVIDER_UNAVAILABLE',
  });
  const after = (await served.approvals(people.guard).getApproval({ approvalId: name })).approval!;
  expect(after).toMatchObject({ state: ApprovalState.APPROVED, usesLeft: 1 });
  await sql(served.estate.targetUrl, `ALTER ROLE ${user} CONNECTION LIMIT -1`);

  const issued = held(await served.agent.issueCredential({ taskId, ...login, approval: name }));
  expect(await loginRefusal(loginOf(issued))).toBeUndefined();
  expect(await refusal(served.agent.issueCredential({ taskId, ...login, approval: name }))).toMatchObject({
    reason: 'APPROVAL_USED',
  });
});
