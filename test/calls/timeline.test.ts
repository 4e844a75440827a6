import { afterAll, beforeAll, expect, test } from 'vitest';
import { AuditService, TimelineStep, type TimelineEntry } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { ToolCallService, Voucher } from '../../src/gen/leasehold/v1/tool_call_service_pb.js';
import { openTask, refusal, warehouseRead, type Parties } from '../e2e/support.ts';
import { runCli, startCli } from '../cli/run-cli.ts';
import { ordersRead, serveCalls, succeeded, working, type Estate } from './support.ts';

let served: Estate;
const tokens: Record<string, string> = {};
beforeAll(async () => {
  served = await serveCalls('timeline');
  for (const name of ['agent/analyst', 'auditor', 'tool/orders', 'orchestrator']) {
    tokens[name] = await served.estate.mint(name);
  }
});
afterAll(() => served.stop());

const uuid = () => crypto.randomUUID();
const as = (name: string) => ({ LEASEHOLD_SERVER: served.estate.httpUrl, LEASEHOLD_TOKEN: tokens[name]! });

async function timelineOf({ audit }: Pick<Parties, 'audit'>, taskId: string, tree = false): Promise<TimelineEntry[]> {
  const entries: TimelineEntry[] = [];
  let pageToken = '';
  do {
    const page = await audit.listTimeline({ taskId, tree, pageSize: 3, pageToken });
    entries.push(...page.entries);
    pageToken = page.nextPageToken;
  } while (pageToken !== '');
  return entries;
}

const told = (entries: TimelineEntry[]) =>
  entries.map(({ step, voucher }) => `${TimelineStep[step]} ${Voucher[voucher]}`.toLowerCase());

test('a task from its intent to its settlement, in order, with who vouches for each entry', async () => {
  const { taskId, leaseId } = await working(served);
  const { call } = await served.calls.beginToolCall({ requestId: uuid(), taskId, leaseId, action: 'orders.list' });
  await served.ordersTool.recordToolCall({
    call: { requestId: uuid(), taskId, leaseId, action: 'orders.list', aboutCallId: call!.callId },
    outcome: succeeded,
    effect: { rows: 3n, externalIds: ['ORD-7'] },
  });
  await served.calls.endToolCall({ requestId: uuid(), callId: call!.callId, outcome: succeeded });
  await served.calls.recordToolCall({
    call: { requestId: uuid(), taskId, ...warehouseRead, action: 'select' },
    outcome: succeeded,
  });
  await served.tasks.closeTask({ requestId: uuid(), taskId, wait: true, justification: 'all done' });

  const entries = await timelineOf(served, taskId);
  expect(told(entries)).toEqual([
    'intent self_reported',
    'change broker_attested',
    'decision broker_attested',
    'credential broker_attested',
    'call self_reported',
    'call target_attested',
    'effect target_attested',
    'effect self_reported',
    'call self_reported',
    'effect self_reported',
    'raised broker_attested',
    'settlement broker_attested',
    'settlement broker_attested',
    'settlement broker_attested',
  ]);
  expect(entries[0]!.summary).toContain('"an end-to-end test" for agent analyst');
  expect(entries[2]).toMatchObject({ policyRule: 'calls/orders', leaseId, ...ordersRead });
  expect(entries[2]!.summary).toMatch(/^allow orders:read for 60 s: .*calls\/orders/);
  expect(entries[6]).toMatchObject({ leaseId, actor: 'spiffe://dev.leasehold.test/tool/orders' });
  expect(entries[6]!.summary).toBe('succeeded 3 rows ORD-7');
  expect(entries[10]!.summary).toBe('warehouse:read select: no_lease, undeclared_tool');
  expect(entries.slice(11).map(({ summary }) => summary)).toEqual([
    'task closing (requested): "all done"',
    'orders:read revoked (closed)',
    'task closed',
  ]);
  // One event may be several entries; ids of one are the same in every list.
  const events = await served.audit.listAuditEvents({ taskId });
  const listed = events.events.map(({ eventId }) => eventId);
  expect([...new Set(entries.map(({ eventId }) => eventId))]).toEqual(
    listed.filter((id) => entries.some(({ eventId }) => eventId === id)),
  );
});

test('with the tasks below it when asked, and for nobody who may not see it', async () => {
  const { taskId } = await openTask(served, [ordersRead], { agent: 'lead' });
  const lead = served.estate.client(TaskService, 'agent/lead');
  const below = (
    await lead.openTask({
      requestId: uuid(),
      intent: 'a part of it',
      agent: 'crew',
      tools: [ordersRead],
      parentTaskId: taskId,
    })
  ).task!;
  const crew = served.estate.client(CredentialService, 'agent/crew/1');
  const { credential } = await crew.issueCredential({ requestId: uuid(), taskId: below.taskId, ...ordersRead });
  const ofTasks = async (tree: boolean) =>
    new Set((await timelineOf(served, taskId, tree)).map((entry) => entry.taskId));
  expect(await ofTasks(false)).toEqual(new Set([taskId]));
  expect(await ofTasks(true)).toEqual(new Set([taskId, below.taskId]));

  const { call } = await served.estate.client(ToolCallService, 'agent/crew/1').beginToolCall({
    requestId: uuid(),
    taskId: below.taskId,
    leaseId: credential!.lease!.leaseId,
    action: 'orders.get',
  });
  expect(call!.chain).toMatchObject([{ taskId, agent: 'lead', opener: 'spiffe://dev.leasehold.test/orchestrator' }]);
  expect(call!.rootTaskId).toBe(taskId);

  const stranger = served.estate.client(AuditService, 'orchestrator/other');
  expect(await refusal(stranger.listTimeline({ taskId }))).toMatchObject({ reason: 'ROLE_REQUIRED' });
  expect(await refusal(served.audit.listTimeline({ taskId, pageToken: 'x' }))).toMatchObject({
    reason: 'FIELD_INVALID',
    fields: ['page_token'],
  });
});

test('the command line records calls, lists them and tells the timeline', async () => {
  const { taskId, leaseId } = await working(served);
  const follower = startCli(['task', 'timeline', taskId, '--follow'], as('auditor'));
  const begun = await runCli(
    ['call', 'begin', taskId, '--lease', leaseId, '--action', 'orders.list', '--argument', 'shop=acme', '--json'],
    as('agent/analyst'),
  );
  expect(begun).toMatchObject({ code: 0, stderr: '' });
  const { callId } = (JSON.parse(begun.stdout) as { call: { callId: string } }).call;
  const record = ['call', 'record', taskId, '--lease', leaseId, '--action', 'orders.list', '--outcome', 'succeeded'];
  const attested = await runCli([...record, '--about', callId, '--rows', '3', '--object', 'orders'], as('tool/orders'));
  expect(attested).toMatchObject({ code: 0, stderr: '' });
  expect(attested.stdout).toMatch(/^effect +3 rows; orders {2}\[tool\]$/m);
  expect(attested.stdout).toMatch(
    /^target +provider=jwt resource=https:\/\/orders\.dev\.leasehold\.test {2}\[broker\]$/m,
  );
  const ended = await runCli(
    ['call', 'end', callId, '--outcome', 'failed', '--error', 'password=hunter2'],
    as('agent/analyst'),
  );
  expect(ended.stdout).toMatch(/^error +password=\[redacted\] {2}\[self\]$/m);
  const got = await runCli(['call', 'get', callId], as('auditor'));
  const withoutAges = (text: string) => text.replace(/\((?:now|[^()]* ago)\)/g, '');
  expect(withoutAges(got.stdout)).toBe(withoutAges(ended.stdout));
  const listed = await runCli(['call', 'list', '--task', taskId, '--json'], as('auditor'));
  expect((JSON.parse(listed.stdout) as { calls: object[] }).calls).toHaveLength(2);
  const raised = await runCli(['call', 'list', '--task', taskId, '--raised'], as('auditor'));
  expect(raised.stdout).toBe('no calls\n');
  expect(await runCli(['call', 'list'], as('agent/analyst'))).toMatchObject({ code: 2 });
  expect(await runCli([...record, '--rows', 'many'], as('agent/analyst'))).toMatchObject({ code: 2 });

  await served.tasks.closeTask({ requestId: uuid(), taskId, wait: true });
  const followed = await follower.done;
  expect(followed).toMatchObject({ code: 0, stderr: '' });
  const told = await runCli(['task', 'timeline', taskId], as('orchestrator'));
  expect(told.stdout).toBe(followed.stdout);
  expect(told.stdout).toMatch(
    /^[\d:.]{12} {2}call +tool +tool\/orders +cal …[0-9a-f]{6} {2}orders:read orders\.list at https/m,
  );
  const json = await runCli(['task', 'timeline', taskId, '--json'], as('auditor'));
  const { entries } = JSON.parse(json.stdout) as { entries: { step: string }[] };
  expect(entries).toHaveLength(told.stdout.trimEnd().split('\n').length - 1);
}, 60_000);
