import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ToolCallOutcome, ToolCallService } from '../../src/gen/leasehold/v1/tool_call_service_pb.js';
import { refusal, sql } from '../e2e/support.ts';
import { eventsOf, rowsOf, serveCalls, succeeded, violations, working, type Estate } from './support.ts';

let served: Estate;
beforeAll(async () => {
  served = await serveCalls('hostile', { calls: { maxPerTask: 5 } });
});
afterAll(() => served.stop());

const uuid = () => crypto.randomUUID();
const timestamp = (ms: number) => ({ seconds: BigInt(Math.floor(ms / 1000)), nanos: 0 });

test('what is too large, malformed or contradictory is refused by its field, and nothing is recorded', async () => {
  const { taskId, leaseId } = await working(served);
  const call = { requestId: uuid(), taskId, leaseId, action: 'orders.list' };
  const day = 86_400_000;
  const mistakes: [string, object][] = [
    ['effect.objects', { effect: { objects: Array.from({ length: 33 }, (_, n) => `o${n}`) } }],
    ['effect.objects[0]', { effect: { objects: ['x'.repeat(257)] } }],
    ['effect.external_ids[1]', { effect: { externalIds: ['a', ''] } }],
    ['effect.note', { effect: { note: 'x'.repeat(501) } }],
    ['effect.rows', { effect: { rows: -1n } }],
    ['effect.rows', { effect: { rows: 2n ** 60n } }],
    ['effect', { effect: { objects: Array.from({ length: 32 }, () => 'ä'.repeat(256)) } }],
    ['error', { error: 'x'.repeat(501) }],
    ['outcome', { outcome: ToolCallOutcome.UNSPECIFIED }],
    ['start_time', { startTime: timestamp(Date.now() + 3_600_000) }],
    ['end_time', { endTime: timestamp(Date.now() + 3_600_000) }],
    ['start_time', { startTime: timestamp(Date.now() - 2 * day) }],
    ['start_time', { startTime: timestamp(Date.now() - 1_000), endTime: timestamp(Date.now() - 10_000) }],
    ['arguments', { call: { ...call, arguments: { text: Array.from({ length: 6 }, () => 'x'.repeat(4_000)) } } }],
    ['arguments_digest', { call: { ...call, arguments: {}, argumentsDigest: `sha256:${'0'.repeat(64)}` } }],
    ['arguments_digest', { call: { ...call, argumentsDigest: 'sha256:short' } }],
    ['action', { call: { ...call, action: '' } }],
    ['action', { call: { ...call, action: 'a b' } }],
    ['action', { call: { ...call, action: 'x'.repeat(129) } }],
    ['lease_id', { call: { ...call, leaseId: 'lse_1' } }],
    ['tool', { call: { ...call, tool: 'No Tool' } }],
    ['tool', { call: { ...call, leaseId: '' } }],
    ['about_call_id', { call: { ...call, aboutCallId: `cal_${'0'.repeat(32)}` } }],
    ['peer', { call: { ...call, peer: { workload: 'x', address: '' } } }],
    ['call', { call: undefined }],
  ];
  for (const [field, mistake] of mistakes) {
    const answer = await refusal(served.calls.recordToolCall({ call, outcome: succeeded, ...mistake }));
    expect(answer, field).toMatchObject({ reason: 'FIELD_INVALID', fields: [field] });
  }
  expect(await rowsOf(served.estate, taskId)).toEqual([]);
  expect(await eventsOf(served.estate, taskId)).toEqual([]);
});

test('a batch is bounded', async () => {
  const { taskId, leaseId } = await working(served);
  const entry = { taskId, leaseId, action: 'orders.list' };
  for (const size of [0, 101, 1_000, 1_001]) {
    const requests = Array.from({ length: size }, () => ({ requestId: uuid(), ...entry }));
    const answer = await refusal(served.calls.batchBeginToolCalls({ requests }));
    expect(answer, `${size} entries`).toMatchObject({ reason: 'FIELD_INVALID', fields: ['requests'] });
  }
  expect(await rowsOf(served.estate, taskId)).toEqual([]);
});

describe('somebody else', () => {
  test('cannot record on a task, end a call, look at it or list it', async () => {
    const { taskId, leaseId } = await working(served);
    const begin = { taskId, leaseId, action: 'orders.list' };
    const { call } = await served.calls.beginToolCall({ requestId: uuid(), ...begin });
    const { callId } = call!;
    const crew = served.estate.client(ToolCallService, 'agent/crew/1');
    expect(await refusal(crew.beginToolCall({ requestId: uuid(), ...begin }))).toMatchObject({
      reason: 'TASK_NOT_FOUND',
    });
    for (const client of [crew, served.ordersTool, served.mailTool]) {
      expect(await refusal(client.endToolCall({ requestId: uuid(), callId, outcome: succeeded }))).toMatchObject({
        reason: 'CALL_NOT_FOUND',
      });
      expect(await refusal(client.getToolCall({ callId }))).toMatchObject({ reason: 'CALL_NOT_FOUND' });
    }
    expect(await refusal(crew.listToolCalls({ taskId }))).toMatchObject({ reason: 'TASK_NOT_FOUND' });
    expect(await refusal(crew.listToolCalls({}))).toMatchObject({ fields: ['task_id'] });
    expect(await refusal(served.ordersTool.listToolCalls({ taskId }))).toMatchObject({ reason: 'ROLE_REQUIRED' });
    // The same words for what does not exist.
    const never = `cal_${'0'.repeat(32)}`;
    const words = async (id: string) => (await refusal(crew.getToolCall({ callId: id }))).message.replace(id, '');
    expect(await words(callId)).toBe(await words(never));
    const ofLease = async (id: string) =>
      (await refusal(served.calls.beginToolCall({ requestId: uuid(), ...begin, leaseId: id }))).message.replace(id, '');
    const other = await working(served);
    expect(await ofLease(other.leaseId)).toBe(await ofLease(`lse_${'0'.repeat(32)}`));
    expect(await rowsOf(served.estate, taskId)).toHaveLength(1);
  });

  test('with the same request_id makes a record of its own', async () => {
    const { taskId, leaseId } = await working(served);
    const request = { requestId: uuid(), taskId, leaseId, action: 'orders.list' };
    const own = await served.calls.beginToolCall(request);
    const seen = await served.ordersTool.beginToolCall(request);
    expect(seen.call!.callId).not.toBe(own.call!.callId);
    // A tool that was taken out of the document since cannot end what it began; the agent neither.
    expect(
      await refusal(served.calls.endToolCall({ requestId: uuid(), callId: seen.call!.callId, outcome: succeeded })),
    ).toMatchObject({ reason: 'CALL_NOT_FOUND' });
  });
});

test('a task has room for so many records; the bound is said once, and a retry still finds its record', async () => {
  const { taskId, leaseId } = await working(served);
  const request = () => ({ requestId: uuid(), taskId, leaseId, action: 'orders.list' });
  const first = request();
  const { call } = await served.calls.beginToolCall(first);
  for (let n = 1; n < 5; n++) await served.calls.beginToolCall(request());
  for (let n = 0; n < 3; n++) {
    expect(await refusal(served.calls.beginToolCall(request()))).toMatchObject({
      code: 'ResourceExhausted',
      reason: 'CALL_LIMIT',
    });
  }
  expect((await served.calls.beginToolCall(first)).call!.callId).toBe(call!.callId);
  await served.calls.endToolCall({ requestId: uuid(), callId: call!.callId, outcome: succeeded });
  expect(await rowsOf(served.estate, taskId)).toHaveLength(5);
  const kinds = (await eventsOf(served.estate, taskId)).map(({ kind }) => kind);
  expect(kinds.filter((kind) => kind === 'call.limit_reached')).toHaveLength(1);
});

test('names that nobody registered become no label of a metric', async () => {
  const { taskId, leaseId } = await working(served);
  for (const name of ['made-up-1', 'made-up-2']) {
    const { call } = await served.calls.recordToolCall({
      call: { requestId: uuid(), taskId, leaseId, tool: name, action: 'x' },
      outcome: succeeded,
    });
    expect(violations(call)).toEqual(['other_tool', 'undeclared_tool']);
  }
  const metrics = await (await fetch(`${served.estate.httpUrl}/metrics`)).text();
  expect(metrics).not.toContain('made-up');
  expect(metrics).toContain('tool="(unregistered)"');
});

test('a secret that slips into any text reaches no table, event or log', async () => {
  const { taskId, leaseId } = await working(served);
  const canary = `CANARY${uuid().replaceAll('-', '')}`;
  const jwt = `eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ${canary}.${canary}`;
  await served.calls.recordToolCall({
    call: {
      requestId: uuid(),
      taskId,
      leaseId,
      action: 'orders.list',
      arguments: { password: canary, nested: { token: canary }, shop: 'acme' },
    },
    outcome: ToolCallOutcome.FAILED,
    error: `login failed: password=${canary}`,
    effect: {
      objects: [`postgres://app:${canary}@db/orders`],
      externalIds: [`Bearer ${canary}`],
      note: `the token was ${jwt}`,
    },
  });
  await served.tasks.closeTask({ requestId: uuid(), taskId, wait: true });
  const dump = await sql(
    served.estate.databaseUrl,
    `SELECT (SELECT json_agg(c) FROM leasehold.tool_calls c)::text || (SELECT json_agg(e) FROM leasehold.audit_events e)::text AS all`,
  );
  expect(String(dump[0]!['all'])).toContain('[redacted]');
  expect(String(dump[0]!['all'])).not.toContain(canary);
  expect(served.log.join('')).not.toContain(canary);
});

test('lists page through everything once, newest first, by task, agent, tool and time', async () => {
  const { taskId, leaseId } = await working(served);
  const before = Date.now();
  for (let n = 0; n < 4; n++) {
    await served.calls.beginToolCall({ requestId: uuid(), taskId, leaseId, action: `orders.${n}` });
  }
  const found: string[] = [];
  let pageToken = '';
  do {
    const page = await served.calls.listToolCalls({ taskId, pageSize: 3, pageToken });
    found.push(...page.calls.map(({ action }) => action));
    pageToken = page.nextPageToken;
  } while (pageToken !== '');
  expect(found).toEqual(['orders.3', 'orders.2', 'orders.1', 'orders.0']);
  const count = async (filter: object) => (await served.auditorCalls.listToolCalls({ taskId, ...filter })).calls.length;
  expect(await count({ agent: 'analyst', tool: 'orders' })).toBe(4);
  expect(await count({ agent: 'crew' })).toBe(0);
  expect(await count({ tool: 'mail' })).toBe(0);
  expect(await count({ since: timestamp(before - 1_000) })).toBe(4);
  expect(await count({ until: timestamp(before - 1_000) })).toBe(0);
  expect(await count({ violationsOnly: true })).toBe(4);
  expect((await served.auditorCalls.listToolCalls({ pageSize: 1 })).nextPageToken).not.toBe('');
  expect(await refusal(served.calls.listToolCalls({ taskId, pageToken: 'x' }))).toMatchObject({
    fields: ['page_token'],
  });
});
