import { randomBytes } from 'node:crypto';
import path from 'node:path';
import { create, getOption, toJsonString } from '@bufbuild/protobuf';
import type { DescMethod, DescMethodServerStreaming, DescMethodUnary, JsonObject } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { ConnectError } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { ApprovalService } from '../../src/gen/leasehold/v1/approval_service_pb.js';
import { LockService } from '../../src/gen/leasehold/v1/lock_service_pb.js';
import { access, Role } from '../../src/gen/leasehold/v1/options_pb.js';
import { SignalService } from '../../src/gen/leasehold/v1/signal_service_pb.js';
import { ToolCallOutcome, ToolCallService } from '../../src/gen/leasehold/v1/tool_call_service_pb.js';
import { auditOf, held, refusal, refusalOf, reportsRead, sql } from '../e2e/support.ts';
import { everyMethod } from '../support/methods.ts';
import { serveTwoTenants, type TwoTenants } from './support.ts';

/**
 * Whoever is of one tenant asks each RPC about what is another's, and then about what never was: the two answers have to be
 * the same, and nothing of the other tenant may be in either, nor be changed.
 */
const look = { tool: 'vault-door', tier: Tier.READ };
const marker = 'a-word-of-the-default-tenant';

/** Names of things, of the other tenant's or made up. */
interface Names {
  task: string;
  lease: string;
  approval: string;
  lock: string;
  call: string;
  decision: string;
  signal: string;
  digest: string;
  target: string;
  requestId: string;
  event: string;
}

let two: TwoTenants;
let transport: ReturnType<typeof createConnectTransport>;
let theirs: Names;
/** A task of the tenant that asks. */
let own: { task: string; digest: string };
const tokens = new Map<Role, string>();
const holders = new Map<Role, string>([
  [Role.ORCHESTRATOR, 'orchestrator'],
  [Role.AGENT, 'agent/analyst'],
  [Role.RESOURCE_SERVER, 'resource_server'],
  [Role.OPERATOR, 'operator'],
  [Role.AUDITOR, 'auditor'],
  [Role.APPROVER, 'approver'],
  [Role.SIGNAL_SOURCE, 'signal_source'],
]);

function madeUp(): Names {
  // Of the same form and about the same time: no id of a task that was made an hour ago.
  const like = (id: string) => id.slice(0, 16) + randomBytes(8).toString('hex') + id.slice(32);
  return {
    task: like(theirs.task),
    lease: like(theirs.lease),
    approval: like(theirs.approval),
    lock: like(theirs.lock),
    call: like(theirs.call),
    decision: like(theirs.decision),
    signal: like(theirs.signal),
    digest: `sha256:${randomBytes(32).toString('hex')}`,
    target: 'warehouze',
    requestId: crypto.randomUUID(),
    event: `evt_${randomBytes(16).toString('hex')}`,
  };
}

const pageToken = (id: string) => Buffer.from(id).toString('base64url');
const reads = { tool: 'reports', tier: Tier.READ };
const later = () => timestampFromMs(Date.now() + 1_800_000);
const opening = { intent: 'mine', agent: 'analyst', tools: [reportsRead] };
const aCall = (taskId: string, leaseId: string) => ({ taskId, leaseId, ...reads, action: 'report.read' });
const succeeded = { outcome: ToolCallOutcome.SUCCEEDED };
const subject = (taskId: string) => ({ subject: { case: 'taskId' as const, value: taskId } });

/** What is asked of each RPC. Those that list are also asked for everything. */
const probes: Record<string, (of: Names) => object[]> = {
  'AdminService/GetStatus': () => [{}],
  'AdminService/ListLeases': ({ task, lease }) => [{}, { taskId: task }, { pageToken: pageToken(lease) }],
  'AdminService/ListTools': () => [{}],
  'ApprovalService/GetApproval': ({ approval }) => [{ approvalId: approval }],
  'ApprovalService/ListApprovals': ({ task, approval }) => [{}, { taskId: task }, { pageToken: pageToken(approval) }],
  'ApprovalService/DecideApproval': ({ approval }) => [{ approvalId: approval, verdict: 1 }],
  'ApprovalService/WatchApproval': ({ approval }) => [{ approvalId: approval }],
  'ApprovalService/RequestApprovals': ({ task }) => [{ taskId: task, actions: [look] }],
  'ApprovalService/BreakGlass': ({ task }) => [{ taskId: task, ...reads, reason: 'an emergency' }],
  'AuditService/ListAuditEvents': ({ task, event }) => [
    { taskId: task },
    { taskId: own.task, pageToken: pageToken(event) },
  ],
  'AuditService/ListTimeline': ({ task, event }) => [
    { taskId: task },
    { taskId: own.task, pageToken: pageToken(event) },
  ],
  'AuditService/ExportEvidence': ({ task }) => [{ taskId: task }],
  'CredentialService/IssueCredential': ({ task, approval, requestId }) => [
    { taskId: task, ...reads },
    { taskId: task, ...reads, requestId },
    { taskId: own.task, ...look, approval },
  ],
  'CredentialService/RenewCredential': ({ lease, requestId }) => [{ leaseId: lease }, { leaseId: lease, requestId }],
  'CredentialService/ReturnCredential': ({ lease }) => [{ leaseId: lease }],
  'CredentialService/StreamCredential': ({ task }) => [{ taskId: task, ...reads }],
  'LockService/CreateLock': ({ task }) => [{ scope: { scope: { case: 'taskId', value: task } }, reason: 'x' }],
  'LockService/LiftLock': ({ lock }) => [{ lockId: lock, reason: 'x' }],
  'LockService/GetLock': ({ lock }) => [{ lockId: lock }],
  'LockService/ListLocks': ({ task, lock }) => [
    { includeEnded: true },
    { taskId: task },
    { includeEnded: true, pageToken: pageToken(lock) },
  ],
  'PolicyService/ApplyPolicy': ({ digest }) => [{ files: [], dryRun: true, expectedRevision: digest }],
  'PolicyService/RollbackPolicy': ({ digest }) => [{ digest }],
  'PolicyService/ListActivations': () => [{}, { pageToken: pageToken('2') }],
  'PolicyService/ListRevisions': ({ digest }) => [{}, { pageToken: pageToken(`9999999999999 ${digest}`) }],
  'PolicyService/GetRevision': ({ digest }) => [{ digest }],
  'PolicyService/DiffRevisions': ({ digest }) => [
    { from: digest, to: own.digest },
    { from: own.digest, to: digest },
  ],
  'PolicyService/ExplainDecision': ({ decision, task, digest }) => [
    { subject: { case: 'decisionId', value: decision } },
    { subject: { case: 'hypothetical', value: { taskId: task, access: reportsRead } } },
    { subject: { case: 'hypothetical', value: { agent: 'analyst', access: reportsRead, revision: digest } } },
  ],
  'PolicyService/StreamDecisions': () => [{ since: timestampFromMs(Date.now() - 3_600_000) }],
  'ReportService/GetReport': () => [{}],
  'RevocationService/WatchRevocations': () => [{}, { afterPosition: BigInt(Date.now() - 60_000) * 1_000_000n }],
  'SettlementService/GetLease': ({ lease }) => [{ leaseId: lease }],
  'SettlementService/RetrySettlement': ({ lease, task }) => [{ leaseIds: [lease] }, { taskId: task }],
  'SettlementService/AbandonLease': ({ lease }) => [{ leaseId: lease, reason: 'x' }],
  'SettlementService/Reconcile': ({ target }) => [{ target, settle: true }],
  'SignalService/ReportSignals': ({ task }) => [
    { signals: [{ subject: subject(task), kind: 'risk', value: 90, reason: 'x' }] },
  ],
  'SignalService/ListSignals': ({ task }) => [{ past: true }, { subject: subject(task) }],
  'SignalService/ClearSignals': ({ signal }) => [{ signalIds: [signal], reason: 'x' }],
  'TaskService/OpenTask': ({ task, requestId }) => [
    { ...opening, parentTaskId: task },
    { ...opening, requestId },
  ],
  'TaskService/GetTask': ({ task }) => [{ taskId: task }],
  'TaskService/ListTasks': ({ task }) => [
    { parentTaskId: task },
    { rootTaskId: task },
    { pageSize: 1_000 },
    { pageToken: pageToken(task) },
  ],
  'TaskService/ExtendTask': ({ task }) => [{ taskId: task, deadline: later() }],
  'TaskService/HeartbeatTask': ({ task }) => [{ taskId: task }],
  'TaskService/HandOverTask': ({ task }) => [{ taskId: task, agent: 'analyst', justification: 'x' }],
  'TaskService/CloseTask': ({ task }) => [{ taskId: task }],
  'TaskService/ListTaskTree': ({ task }) => [{ taskId: task }],
  'TaskService/WatchTask': ({ task }) => [{ taskId: task }],
  'ToolCallService/BeginToolCall': ({ task, lease, call }) => [
    aCall(task, lease),
    aCall(own.task, lease),
    { ...aCall(own.task, ''), aboutCallId: call },
  ],
  'ToolCallService/EndToolCall': ({ call }) => [{ callId: call, ...succeeded }],
  'ToolCallService/RecordToolCall': ({ task, lease }) => [
    { call: aCall(task, lease), ...succeeded },
    { call: aCall(own.task, lease), ...succeeded },
  ],
  'ToolCallService/BatchBeginToolCalls': ({ task, lease }) => [
    { requests: [aCall(task, lease), aCall(own.task, lease)] },
  ],
  'ToolCallService/BatchEndToolCalls': ({ call }) => [{ requests: [{ callId: call, ...succeeded }] }],
  'ToolCallService/BatchRecordToolCalls': ({ task, lease }) => [
    { requests: [{ call: aCall(task, lease), ...succeeded }] },
  ],
  'ToolCallService/GetToolCall': ({ call }) => [{ callId: call }],
  'ToolCallService/ListToolCalls': ({ task, call }) => [{}, { taskId: task }, { pageToken: pageToken(call) }],
};

// What acme says itself of the ids that it tries comes last, so that it is in no answer before.
const reporting = (name: string) => Number(name === 'SignalService/ReportSignals');
const methods = (await everyMethod())
  .map((method) => [`${method.parent.name}/${method.name}`, method] as const)
  .sort(([a], [b]) => reporting(a) - reporting(b));
const methodOf = (wanted: string) => methods.find(([name]) => name === wanted)![1];

beforeAll(async () => {
  two = await serveTwoTenants('everyrpc', {
    policies: [path.join(import.meta.dirname, '../approvals/fixtures/approvals.yaml')],
  });
  const { ours, estate } = two;
  transport = createConnectTransport({ baseUrl: estate.httpUrl, httpVersion: '1.1' });
  const requestId = crypto.randomUUID();
  const { task } = await ours.tasks.openTask({
    intent: marker,
    agent: 'analyst',
    tools: [reportsRead, look],
    requestId,
  });
  const { taskId } = task!;
  const { lease } = held(await ours.agent.issueCredential({ taskId, ...reportsRead, requestId }));
  await refusal(ours.agent.issueCredential({ taskId, ...look }));
  const { approvals } = await estate.client(ApprovalService, 'operator').listApprovals({ taskId });
  const { lock } = await estate.client(LockService, 'operator').createLock({
    scope: { scope: { case: 'tool', value: { tool: 'vault-door', tier: Tier.EXECUTE } } },
    reason: marker,
  });
  const { call } = await estate.client(ToolCallService, 'agent/analyst').beginToolCall(aCall(taskId, lease.leaseId));
  const { signals } = await estate.client(SignalService, 'scanner').reportSignals({
    signals: [{ subject: subject(taskId), kind: 'risk', value: 1, reason: marker }],
  });
  const { policyRevision: digest } = await ours.admin.getStatus({});
  const events = await auditOf(ours, taskId);
  const decided = events.find(({ detail }) => detail?.['decision_id'] !== undefined)!;
  theirs = {
    task: taskId,
    lease: lease.leaseId,
    approval: approvals[0]!.approvalId,
    lock: lock!.lockId,
    call: call!.callId,
    decision: decided.detail!['decision_id'] as string,
    signal: signals[0]!.signalId,
    digest,
    target: 'warehouse',
    requestId,
    event: events[0]!.eventId,
  };
  for (const [role, workload] of holders) tokens.set(role, await two.acmeToken(workload));
  const acmeTask = await ask(methodOf('TaskService/OpenTask'), {
    ...opening,
    tools: [reportsRead, look],
  });
  const status = await ask(methodOf('AdminService/GetStatus'), {});
  own = {
    task: ((JSON.parse(acmeTask) as JsonObject)['task'] as JsonObject)['taskId'] as string,
    digest: (JSON.parse(status) as JsonObject)['policyRevision'] as string,
  };
});
afterAll(() => two?.stop());

const tokenFor = (method: DescMethod) => tokens.get(getOption(method, access).roles.find((one) => tokens.has(one))!)!;

/** What acme is told: the answer, what a stream says until it rests, or the refusal, as text. */
async function ask(method: DescMethod, request: object, token = tokenFor(method)): Promise<string> {
  const headers = { authorization: `Bearer ${token}` };
  const stop = new AbortController();
  const message = create(method.input, request as never);
  try {
    if (method.methodKind === 'unary') {
      const unary = method as DescMethodUnary;
      const answer = await transport.unary(unary, stop.signal, 10_000, headers, message as never, undefined);
      return toJsonString(method.output, answer.message);
    }
    const input = (async function* () {
      yield message as never;
    })();
    const streaming = method as DescMethodServerStreaming;
    const answer = await transport.stream(streaming, stop.signal, 10_000, headers, input, undefined);
    const said: string[] = [];
    const rest = setTimeout(() => stop.abort(), 500);
    try {
      for await (const part of answer.message) said.push(toJsonString(method.output, part));
    } catch (error) {
      if (!stop.signal.aborted) throw error;
    } finally {
      clearTimeout(rest);
    }
    return said[0] ?? 'nothing';
  } catch (error) {
    return JSON.stringify(refusalOf(ConnectError.from(error)));
  } finally {
    stop.abort();
  }
}

/** Without what differs from one call to the next, and without what was asked for. */
function plain(answer: string, asked: Names): string {
  const named = Object.values(asked).reduce((text, name: string) => text.replaceAll(name, '<asked>'), answer);
  return named
    .replace(/\b[a-z]{3}_[0-9a-f]{32}\b/g, '<id>')
    .replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, '<time>')
    .replace(/"[\d.]+s"/g, '<duration>')
    .replace(/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/g, '<uuid>')
    .replace(/\b\d{3,}\b/g, '<number>');
}

/** Every row that belongs to the default tenant, but what the broker itself goes on to write. */
async function rowsOfDefault(): Promise<string> {
  const tables = ['tasks', 'leases', 'approvals', 'approval_votes', 'locks', 'tool_calls', 'signals', 'audit_events'];
  const found = await Promise.all(
    tables.map((table) =>
      sql(
        two.estate.databaseUrl,
        `SELECT '${table}' AS table, count(*)::int AS n, md5(string_agg(t::text, ',' ORDER BY t::text)) AS all
         FROM leasehold.${table} t WHERE tenant = 'default'`,
      ),
    ),
  );
  return JSON.stringify(found.flat(), null, 1);
}

test('every RPC of the contract is asked', () => {
  expect(Object.keys(probes).sort()).toEqual(methods.map(([name]) => name).sort());
});

test('the tenant itself is told by these very requests', async () => {
  for (const [name, workload] of [
    ['TaskService/GetTask', 'orchestrator'],
    ['SettlementService/GetLease', 'operator'],
    ['ApprovalService/GetApproval', 'operator'],
    ['LockService/GetLock', 'operator'],
    ['PolicyService/GetRevision', 'operator'],
    ['PolicyService/ExplainDecision', 'operator'],
    ['ToolCallService/GetToolCall', 'operator'],
    ['AuditService/ListAuditEvents', 'auditor'],
  ] as const) {
    const answer = await ask(methodOf(name), probes[name]!(theirs)[0]!, await two.estate.mint(workload));
    expect(answer, name).not.toMatch(/^\{"code":/);
  }
});

describe('a workload of one tenant learns nothing of another by', () => {
  test.each(methods)('%s', async (name, method) => {
    const before = await rowsOfDefault();
    const invented = madeUp();
    const [real, other] = [probes[name]!(theirs), probes[name]!(invented)];
    for (const [index, request] of real.entries()) {
      const answer = await ask(method, request);
      expect(plain(answer, theirs)).toBe(plain(await ask(method, other[index]!), invented));
      const sent = JSON.stringify(request, (_key, value: unknown) => (typeof value === 'bigint' ? `${value}` : value));
      const secrets = [
        ...Object.values(theirs).filter((word: string) => !sent.includes(word)),
        marker,
        'dev.leasehold',
      ];
      for (const secret of secrets) expect(answer).not.toContain(secret);
    }
    expect(await rowsOfDefault()).toBe(before);
  });
});
