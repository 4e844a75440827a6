import { afterAll, beforeAll, expect, test } from 'vitest';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { Tier, TaskState } from '../../src/gen/leasehold/v1/common_pb.js';
import { createEstate, startProcess, type BrokerProcess, type TestEstate } from '../support/broker.ts';

let estate: TestEstate;
let broker: BrokerProcess;
beforeAll(async () => {
  estate = await createEstate('main');
  broker = await startProcess(estate);
});
afterAll(async () => {
  await broker.stop();
  await estate.remove();
});

test('a task is opened, gets a credential and is closed with its outcome', async () => {
  const orchestrator = estate.client(TaskService, 'orchestrator');
  const agent = estate.client(CredentialService, 'agent/analyst');
  const { task } = await orchestrator.openTask({
    intent: 'test',
    agent: 'analyst',
    tools: [{ tool: 'reports', tier: Tier.READ }],
  });
  const taskId = task!.taskId;
  const { credential } = await agent.issueCredential({ taskId, tool: 'reports', tier: Tier.READ });
  expect(credential?.material.case).toBe('accessToken');
  const closed = await orchestrator.closeTask({ taskId, wait: true });
  expect(closed.task?.state).toBe(TaskState.CLOSED);
  expect(closed.summary).toMatchObject({ unsettled: 0, revoked: 1 });
});
