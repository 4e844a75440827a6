import { cp } from 'node:fs/promises';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Effect, Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { PolicyService } from '../../src/gen/leasehold/v1/policy_service_pb.js';
import { ToolCallService } from '../../src/gen/leasehold/v1/tool_call_service_pb.js';
import { auditOf, openTask, parties, refusal, type Parties } from '../e2e/support.ts';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import { runCli } from '../cli/run-cli.ts';
import { succeeded } from './support.ts';

const deskRead = { tool: 'desk', tier: Tier.READ };
const deskWrite = { tool: 'desk', tier: Tier.WRITE };
const postWrite = { tool: 'post', tier: Tier.WRITE };
const fixture = path.join(import.meta.dirname, 'fixtures', 'called.yaml');

let estate: TestEstate;
let served: Parties;
let stop: () => Promise<void>;
beforeAll(async () => {
  estate = await createEstate('called');
  await cp(fixture, path.join(estate.policyDir, 'called.yaml'));
  const broker = await startInProcess(estate);
  served = parties(estate);
  stop = () => broker.stop(500);
});
afterAll(async () => {
  await stop();
  await estate.remove();
});

const uuid = () => crypto.randomUUID();
const issue = async (taskId: string, access: { tool: string; tier: Tier }) =>
  (await served.agent.issueCredential({ requestId: uuid(), taskId, ...access })).credential!.lease!.leaseId;

test('a rule looks at what the task has called, and the word of the tool is not that of the agent', async () => {
  const { taskId, plan } = await openTask(served, [deskRead, deskWrite, postWrite]);
  expect(plan.map(({ effect }) => effect)).toEqual([Effect.ALLOW, Effect.DENY, Effect.ALLOW]);
  await issue(taskId, postWrite);
  const leaseId = await issue(taskId, deskRead);
  // A credential alone is no call.
  await issue(taskId, postWrite);

  const call = { taskId, leaseId, action: 'look' };
  const agent = estate.client(ToolCallService, 'agent/analyst');
  await agent.recordToolCall({ call: { requestId: uuid(), ...call }, outcome: succeeded });
  expect(await refusal(issue(taskId, postWrite))).toMatchObject({ reason: 'POLICY_DENIED' });
  expect(await refusal(issue(taskId, deskWrite))).toMatchObject({ reason: 'POLICY_DENIED' });

  const tool = estate.client(ToolCallService, 'tool/desk');
  await tool.recordToolCall({ call: { requestId: uuid(), ...call }, outcome: succeeded });
  await issue(taskId, deskWrite);
  // Another task has called nothing.
  const other = await openTask(served, [postWrite]);
  await issue(other.taskId, postWrite);

  const denied = (await auditOf(served, taskId)).find(
    ({ kind, detail }) => kind === 'decision.made' && detail?.['rule'] === 'called/no-post-after-personal-data',
  );
  const decisionId = denied!.detail!['decision_id'] as string;
  const explained = await estate.client(PolicyService, 'operator').explainDecision({
    subject: { case: 'decisionId', value: decisionId },
  });
  expect(
    JSON.stringify(explained, (_key, value: unknown) => (typeof value === 'bigint' ? `${value}` : value)),
  ).toContain('no-post-after-personal-data');
});

test('tests of policy put calls into a request', async () => {
  const { code, stdout, stderr } = await runCli(['policy', 'test', estate.policyDir]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout).toMatch(/5 (cases )?passed|5 of 5/);
});
