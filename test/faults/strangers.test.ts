import { appendFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { DescService } from '@bufbuild/protobuf';
import { createClient, type Client } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { AuditService } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { RevocationService } from '../../src/gen/leasehold/v1/revocation_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import { createTestTrustDomain } from '../support/svid.ts';
import {
  brokerRows,
  callers,
  editConfig,
  editPolicy,
  expectSettled,
  leasesOf,
  loginOf,
  openTask,
  ordersSeenBy,
  refusalOf,
  reportsRead,
  rolesOf,
  warehouseRead,
  type Refusal,
} from './support.ts';

/** Fault 17. Everybody here is attested, and none of it is theirs. */
let estate: TestEstate;
let broker: Awaited<ReturnType<typeof startInProcess>>;
const elsewhere = createTestTrustDomain('elsewhere.test');
let taskId: string;
let leaseId: string;
beforeAll(async () => {
  estate = await createEstate('strangers');
  const bundle = path.join(estate.dir, 'elsewhere.json');
  const elsewherePolicy = path.join(estate.dir, 'elsewhere-policy');
  await mkdir(elsewherePolicy);
  const agents = await readFile(path.join(estate.policyDir, 'agents.yaml'), 'utf8');
  await writeFile(
    path.join(elsewherePolicy, 'agents.yaml'),
    agents.replaceAll('spiffe://dev.leasehold.test/', 'spiffe://elsewhere.test/'),
  );
  await writeFile(bundle, elsewhere.bundleJson());
  const tools = await readFile(path.join(estate.policyDir, 'tools.yaml'), 'utf8');
  await writeFile(
    path.join(elsewherePolicy, 'tools.yaml'),
    tools.slice(0, tools.indexOf('\n---\n')).replaceAll('spiffe://dev.leasehold.test/', 'spiffe://elsewhere.test/'),
  );
  await editConfig(estate, (config) => {
    const { trustDomains } = config['attestation'] as { trustDomains: object[] };
    trustDomains.push({ name: 'elsewhere.test', tenant: 'elsewhere', bundle: { file: bundle } });
    const access = config['access'] as unknown as object[];
    access.push({ workloads: ['spiffe://dev.leasehold.test/second-orchestrator'], roles: ['orchestrator'] });
    const theirs = ['orchestrator', 'operator', 'auditor', 'resource_server'].map((role) => ({
      workloads: [`spiffe://elsewhere.test/${role}`],
      roles: [role],
    }));
    (config as Record<string, unknown>)['tenants'] = {
      elsewhere: { policy: { directory: elsewherePolicy }, access: theirs },
    };
  });
  // A second workload of the same agent, another agent, and the same agent in another tenant.
  await editPolicy(estate, 'agents.yaml', (text) =>
    text.replace(
      'workloads: [spiffe://dev.leasehold.test/agent/analyst]',
      'workloads: [spiffe://dev.leasehold.test/agent/analyst, spiffe://dev.leasehold.test/agent/twin]',
    ),
  );
  await appendFile(path.join(estate.policyDir, 'agents.yaml'), otherAgent);
  await editPolicy(estate, 'analyst.yaml', (text) =>
    text.replace('agents: [analyst]\n      tools: [reports', 'agents: [analyst, other]\n      tools: [reports'),
  );
  broker = await startInProcess(estate);
  taskId = await openTask(estate);
  const { credential } = await callers(estate).agent.issueCredential({ taskId, ...warehouseRead });
  await callers(estate).agent.issueCredential({ taskId, ...reportsRead });
  leaseId = credential!.lease!.leaseId;
});
afterAll(async () => {
  await broker?.stop();
  await estate?.remove();
});

const otherAgent = `---
apiVersion: leasehold.dev/v1
kind: Agent
metadata: { name: other, owner: someone@leasehold.test, description: Another agent. }
spec:
  workloads: [spiffe://dev.leasehold.test/agent/other]
`;

function fromElsewhere<S extends DescService>(service: S, workload: string): Client<S> {
  return createClient(
    service,
    createConnectTransport({
      baseUrl: estate.httpUrl,
      httpVersion: '1.1',
      interceptors: [
        (next) => async (request) => {
          const token = await elsewhere.mint({ sub: `spiffe://elsewhere.test/${workload}`, aud: 'leasehold' });
          request.header.set('authorization', `Bearer ${token}`);
          return await next(request);
        },
      ],
    }),
  );
}

const nothing = { task: `tsk_${'0'.repeat(32)}`, lease: `lse_${'0'.repeat(32)}` };

/** The same words for what is somebody else's and for what does not exist: the ids are all that differs. */
async function expectNothingTold(call: (ids: { task: string; lease: string }) => Promise<unknown>): Promise<void> {
  const blank = (refusal: Refusal) => ({
    ...refusal,
    message: refusal.message.replaceAll(/(tsk|lse)_[0-9a-f]{32}/g, '<id>'),
  });
  const [foreign, missing] = [await refusalOf(call({ task: taskId, lease: leaseId })), await refusalOf(call(nothing))];
  expect(blank(foreign)).toEqual(blank(missing));
  expect(foreign.code).toBe('NotFound');
  expect(['TASK_NOT_FOUND', 'LEASE_NOT_FOUND']).toContain(foreign.reason);
}

const first = async (stream: AsyncIterable<unknown>) => {
  for await (const message of stream) return message;
  return undefined;
};

const agents: [string, () => Client<typeof CredentialService>][] = [
  ['another agent', () => estate.client(CredentialService, 'agent/other')],
  ['a second workload of the same agent', () => estate.client(CredentialService, 'agent/twin')],
  ['the same agent of another tenant', () => fromElsewhere(CredentialService, 'agent/analyst')],
];
const openers: [string, () => Client<typeof TaskService>][] = [
  ['another orchestrator', () => estate.client(TaskService, 'second-orchestrator')],
  ['another agent', () => estate.client(TaskService, 'agent/other')],
  ['an orchestrator of another tenant', () => fromElsewhere(TaskService, 'orchestrator')],
  ['an operator of another tenant', () => fromElsewhere(TaskService, 'operator')],
  ['an auditor of another tenant', () => fromElsewhere(TaskService, 'auditor')],
];

let before: unknown;
const truth = async () => ({
  leases: await leasesOf(estate, taskId),
  tasks: await brokerRows(estate, 'SELECT * FROM tasks WHERE task_id = $1', [taskId]),
  events: await brokerRows(estate, 'SELECT * FROM audit_events ORDER BY event_id'),
  roles: await rolesOf(estate, await leasesOf(estate, taskId)),
});
beforeEach(async () => {
  before = await truth();
});

describe.each(agents)('%s', (_, client) => {
  test('gets, renews, streams and returns nothing of this task, and leaves no trace', async () => {
    for (const access of [reportsRead, warehouseRead]) {
      await expectNothingTold(({ task }) => client().issueCredential({ taskId: task, ...access }));
    }
    await expectNothingTold(({ task }) => first(client().streamCredential({ taskId: task, ...warehouseRead })));
    await expectNothingTold(({ lease }) => client().renewCredential({ leaseId: lease }));
    await expectNothingTold(({ lease }) => client().returnCredential({ leaseId: lease }));
    expect(await truth()).toEqual(before);
  });
});

describe.each(openers)('%s', (name, client) => {
  test('neither sees nor ends this task, and leaves no trace', async () => {
    await expectNothingTold(({ task }) => client().getTask({ taskId: task }));
    await expectNothingTold(({ task }) => first(client().watchTask({ taskId: task })));
    expect((await client().listTasks({})).tasks).toEqual([]);
    // Where the role itself is wanting, that is said, whatever the id.
    // Agents open tasks below their own, so they have the role as well.
    const orchestrates = /orchestrator|agent/.test(name);
    const denied = async (call: (ids: { task: string }) => Promise<unknown>) => {
      for (const task of [taskId, nothing.task]) {
        expect(await refusalOf(call({ task }))).toMatchObject({ code: 'PermissionDenied', reason: 'ROLE_REQUIRED' });
      }
    };
    const inTwoHours = { seconds: BigInt(Math.floor(Date.now() / 1_000) + 7_200), nanos: 0 };
    const owned = orchestrates ? expectNothingTold : denied;
    await owned(({ task }) => client().extendTask({ taskId: task, deadline: inTwoHours }));
    await owned(({ task }) => client().heartbeatTask({ taskId: task }));
    await (orchestrates || name.includes('operator') ? expectNothingTold : denied)(({ task }) =>
      client().closeTask({ taskId: task }),
    );
    expect(await truth()).toEqual(before);
  });
});

test('an operator, auditor and tool of another tenant see no lease, event or revocation of this one', async () => {
  const operator = fromElsewhere(AdminService, 'operator');
  expect((await operator.listLeases({})).leases).toEqual([]);
  expect((await operator.listLeases({ taskId })).leases).toEqual([]);
  await expectNothingTold(({ task }) => fromElsewhere(AuditService, 'auditor').listAuditEvents({ taskId: task }));
  await expectNothingTold(({ task }) => fromElsewhere(AuditService, 'orchestrator').listAuditEvents({ taskId: task }));

  await callers(estate).orchestrator.closeTask({ taskId: await aClosedTaskWithToken() });
  const message = await first(fromElsewhere(RevocationService, 'resource_server').watchRevocations({}));
  expect(message).toMatchObject({ revocations: [], current: true });
  expect((await brokerRows(estate, 'SELECT count(*)::int AS count FROM revocations'))[0]!['count']).toBeGreaterThan(0);
});

async function aClosedTaskWithToken(): Promise<string> {
  const other = await openTask(estate);
  await callers(estate).agent.issueCredential({ taskId: other, ...reportsRead });
  return other;
}

test('the request_id of somebody else finds nothing', async () => {
  const requestId = crypto.randomUUID();
  const open = { requestId, intent: 'mine', agent: 'analyst', tools: [reportsRead] };
  const mine = await callers(estate).orchestrator.openTask(open);
  const theirs = await estate.client(TaskService, 'second-orchestrator').openTask({ ...open, intent: 'theirs' });
  expect(theirs.task!.taskId).not.toBe(mine.task!.taskId);
  const foreign = await fromElsewhere(TaskService, 'orchestrator').openTask(open);
  expect(foreign.task!.taskId).not.toBe(mine.task!.taskId);
});

test('after all of that the task’s own agent works on, and its close settles everything', async () => {
  const { credential } = await callers(estate).agent.issueCredential({ taskId, ...warehouseRead });
  expect(await ordersSeenBy(loginOf(credential))).toBe(3);
  await callers(estate).orchestrator.closeTask({ taskId });
  await expectSettled(estate, taskId);
});
