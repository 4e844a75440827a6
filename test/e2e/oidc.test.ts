import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { AuditService } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { TaskState } from '../../src/gen/leasehold/v1/common_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { createEstate, startInProcess } from '../support/broker.ts';
import type { TestEstate } from '../support/broker.ts';
import { startOidcProvider, testClientId } from '../support/oidc.ts';
import type { TestOidcProvider } from '../support/oidc.ts';
import { clientWith, held, refusal, reportsRead } from './support.ts';

const audience = 'https://leasehold.test';
const dispatcher = 'people/alice';
const runner = `people/${testClientId}`;

let provider: TestOidcProvider;
let estate: TestEstate;
let broker: Awaited<ReturnType<typeof startInProcess>>;

beforeAll(async () => {
  provider = await startOidcProvider();
  estate = await createEstate('oidc', {
    attestation: { oidc: [{ issuer: provider.issuer, audiences: [audience, testClientId], workload: 'people/{sub}' }] },
    access: [
      { workloads: [dispatcher], roles: ['orchestrator'] },
      { workloads: ['spiffe://dev.leasehold.test/auditor'], roles: ['auditor'] },
    ],
  });
  const spec = `spec: { workloads: [${runner}] }`;
  const rule = 'name: runner, agents: [runner], tools: [reports], tiers: [read], effect: allow';
  await writeFile(
    path.join(estate.policyDir, 'runner.yaml'),
    `apiVersion: leasehold.dev/v1\nkind: Agent\nmetadata: { name: runner, owner: ci }\n${spec}\n---\n` +
      `apiVersion: leasehold.dev/v1\nkind: Policy\nmetadata: { name: runner, owner: ci }\nspec: { rules: [{ ${rule} }] }\n`,
  );
  broker = await startInProcess(estate);
});
afterAll(async () => {
  await broker?.stop(500);
  await estate?.remove();
  await provider.close();
});

test('people and machines of an OIDC provider open a task, fetch a credential for it and close it', async () => {
  const orchestrator = clientWith(TaskService, estate.httpPort, await provider.idToken('alice'));
  const agent = clientWith(CredentialService, estate.httpPort, await provider.accessToken(audience));
  const { task } = await orchestrator.openTask({ intent: 'nightly build', agent: 'runner', tools: [reportsRead] });
  const taskId = task!.taskId;
  expect(task).toMatchObject({ opener: dispatcher, agent: 'runner' });
  const { credential, lease } = held(await agent.issueCredential({ taskId, ...reportsRead }));
  expect(credential.material.case).toBe('accessToken');
  expect(lease).toMatchObject({ workload: runner, agent: 'runner' });
  const closed = await orchestrator.closeTask({ taskId, wait: true });
  expect(closed).toMatchObject({ task: { state: TaskState.CLOSED }, summary: { unsettled: 0, revoked: 1 } });
  const { events } = await estate.client(AuditService, 'auditor').listAuditEvents({ taskId });
  expect(new Set(events.map(({ actor }) => actor))).toEqual(new Set([dispatcher, runner, 'broker']));
});

test('who is somebody at the provider is nobody here until a role is granted', async () => {
  const mallory = await provider.idToken('mallory');
  expect(await refusal(clientWith(TaskService, estate.httpPort, mallory).listTasks({}))).toMatchObject({
    code: 'PermissionDenied',
    reason: 'ROLE_REQUIRED',
  });
});

test('a token for another audience, or from another provider, attests nobody', async () => {
  const elsewhere = await provider.accessToken('https://elsewhere.test');
  expect(await refusal(clientWith(CredentialService, estate.httpPort, elsewhere).issueCredential({}))).toMatchObject({
    code: 'Unauthenticated',
    reason: 'ATTESTATION_INVALID',
  });
  const stranger = await startOidcProvider();
  try {
    const token = await stranger.idToken('alice');
    expect(await refusal(clientWith(TaskService, estate.httpPort, token).listTasks({}))).toMatchObject({
      code: 'Unauthenticated',
      reason: 'ISSUER_UNKNOWN',
    });
  } finally {
    await stranger.close();
  }
});
