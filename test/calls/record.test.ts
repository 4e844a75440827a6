import { createHash } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import {
  ToolCallOutcome,
  ToolCallReporter,
  ToolCallState,
  Voucher,
} from '../../src/gen/leasehold/v1/tool_call_service_pb.js';
import { analystId, loggedIn, loginOf, ms, openTask, refusal, warehouseRead } from '../e2e/support.ts';
import {
  eventsOf,
  mailWrite,
  ordersRead,
  ordersWrite,
  rowsOf,
  serveCalls,
  succeeded,
  violations,
  working,
  type Estate,
} from './support.ts';

let served: Estate;
beforeAll(async () => {
  served = await serveCalls('calls');
});
afterAll(() => served.stop());

const uuid = () => crypto.randomUUID();

describe('an agent records its calls', () => {
  test('begun and ended, with who vouches for each part', async () => {
    const { taskId, leaseId } = await working(served);
    const { call: begun } = await served.calls.beginToolCall({
      requestId: uuid(),
      taskId,
      leaseId,
      action: 'orders.list',
      arguments: { shop: 'acme', token: 'not-declared', page: { size: 10 } },
    });
    expect(begun).toMatchObject({
      taskId,
      leaseId,
      agent: 'analyst',
      workload: analystId,
      reportedBy: analystId,
      reporter: ToolCallReporter.AGENT,
      intent: 'an end-to-end test',
      ...ordersRead,
      state: ToolCallState.RUNNING,
      target: { provider: 'jwt', resource: 'https://orders.dev.leasehold.test' },
      // Only what the tier declares is kept; all of it is in the digest.
      arguments: { shop: 'acme' },
      violations: [],
    });
    const canonical = '{"page":{"size":10},"shop":"acme","token":"not-declared"}';
    expect(begun!.argumentsDigest).toBe(`sha256:${createHash('sha256').update(canonical).digest('hex')}`);

    const end = {
      requestId: uuid(),
      callId: begun!.callId,
      outcome: succeeded,
      effect: { objects: ['table:orders'], rows: 12n, externalIds: ['ORD-1'], note: 'twelve orders' },
    };
    const { call: ended } = await served.calls.endToolCall(end);
    expect(ended).toMatchObject({ state: ToolCallState.ENDED, outcome: succeeded, effect: { rows: 12n } });
    expect(ended!.vouching).toMatchObject({
      actor: Voucher.BROKER_ATTESTED,
      intent: Voucher.SELF_REPORTED,
      access: Voucher.BROKER_ATTESTED,
      lease: Voucher.BROKER_ATTESTED,
      target: Voucher.BROKER_ATTESTED,
      action: Voucher.SELF_REPORTED,
      arguments: Voucher.SELF_REPORTED,
      times: Voucher.BROKER_ATTESTED,
      outcome: Voucher.SELF_REPORTED,
      effect: Voucher.SELF_REPORTED,
      peer: Voucher.UNSPECIFIED,
    });
    expect((await served.calls.endToolCall(end)).call).toEqual(ended);
    expect((await served.auditorCalls.getToolCall({ callId: begun!.callId })).call).toEqual(ended);

    const [row] = await rowsOf(served.estate, taskId);
    expect(row).toMatchObject({ outcome: 'succeeded', arguments: { shop: 'acme' }, lease_id: leaseId });
    expect(JSON.stringify(row)).not.toContain('not-declared');
    const events = await eventsOf(served.estate, taskId);
    expect(events.map(({ kind }) => kind)).toEqual(['call.began', 'call.ended']);
    expect(events[1]!.detail).toMatchObject({ call_id: begun!.callId, outcome: 'succeeded', effect: { rows: 12 } });
  });

  test('at once, of a database login: host, database and role come from the lease and the configuration', async () => {
    const work = await working(served, warehouseRead);
    const login = loginOf(work);
    const count = await loggedIn(login, async (client) => {
      const { rows } = await client.query<{ n: number }>('SELECT count(*)::int AS n FROM orders');
      return rows[0]!.n;
    });
    const startTime = { seconds: BigInt(Math.floor(Date.now() / 1000) - 5), nanos: 0 };
    const { call } = await served.calls.recordToolCall({
      call: { requestId: uuid(), taskId: work.taskId, leaseId: work.leaseId, action: 'select' },
      outcome: succeeded,
      effect: { objects: ['orders'], rows: BigInt(count) },
      startTime,
    });
    expect(call).toMatchObject({ ...warehouseRead, state: ToolCallState.ENDED, violations: [], startTime });
    expect(call!.target).toEqual({
      provider: 'postgres',
      target: 'warehouse',
      host: login.host,
      port: String(login.port),
      database: login.database,
      role: login.username,
    });
    expect(call!.vouching).toMatchObject({ times: Voucher.SELF_REPORTED, target: Voucher.BROKER_ATTESTED });
    expect((await eventsOf(served.estate, work.taskId)).map(({ kind }) => kind)).toEqual(['call.recorded']);
  });

  test('a repeated request_id is one record, and with other content a mistake', async () => {
    const { taskId, leaseId } = await working(served);
    const request = { requestId: uuid(), taskId, leaseId, action: 'orders.get', arguments: { a: 1, b: 2 } };
    const answers = await Promise.all(Array.from({ length: 8 }, () => served.calls.beginToolCall(request)));
    expect(new Set(answers.map(({ call }) => call!.callId)).size).toBe(1);
    const reordered = { ...request, arguments: { b: 2, a: 1 } };
    expect((await served.calls.beginToolCall(reordered)).call!.callId).toBe(answers[0]!.call!.callId);
    for (const other of [{ action: 'orders.list' }, { arguments: { a: 1, b: 3 } }, { leaseId: '', ...ordersRead }]) {
      expect(await refusal(served.calls.beginToolCall({ ...request, ...other }))).toMatchObject({
        reason: 'REQUEST_ID_REUSED',
      });
    }
    expect(await rowsOf(served.estate, taskId)).toHaveLength(1);
    expect(await eventsOf(served.estate, taskId)).toHaveLength(1);

    const { callId } = answers[0]!.call!;
    const end = { requestId: uuid(), callId, outcome: succeeded };
    await Promise.all(Array.from({ length: 4 }, () => served.calls.endToolCall(end)));
    for (const other of [{ requestId: uuid() }, { outcome: ToolCallOutcome.FAILED }]) {
      expect(await refusal(served.calls.endToolCall({ ...end, ...other }))).toMatchObject({ reason: 'CALL_ENDED' });
    }
    expect((await eventsOf(served.estate, taskId)).map(({ kind }) => kind)).toEqual(['call.began', 'call.ended']);
  });

  test('in a batch, each entry with a result of its own', async () => {
    const { taskId, leaseId } = await working(served);
    const entry = (action: string) => ({
      call: { requestId: uuid(), taskId, leaseId, action },
      outcome: succeeded,
    });
    const { results } = await served.calls.batchRecordToolCalls({
      requests: [entry('orders.list'), entry('no spaces please'), { outcome: succeeded }, entry('orders.get')],
    });
    expect(results.map(({ result }) => result.case)).toEqual(['call', 'error', 'error', 'call']);
    expect(await rowsOf(served.estate, taskId)).toHaveLength(2);
    const begun = await served.calls.batchBeginToolCalls({
      requests: [{ requestId: uuid(), taskId, leaseId, action: 'orders.get' }],
    });
    const { callId } = begun.results[0]!.result.value as { callId: string };
    const ends = await served.calls.batchEndToolCalls({
      requests: [
        { requestId: uuid(), callId, outcome: succeeded },
        { requestId: uuid(), callId: `cal_${'0'.repeat(32)}`, outcome: succeeded },
      ],
    });
    expect(ends.results.map(({ result }) => result.case)).toEqual(['call', 'error']);
  });

  test('a call without an end is unfinished when its task settles; a late end is kept and raised', async () => {
    const { taskId, leaseId } = await working(served);
    const begin = { taskId, leaseId, action: 'orders.get' };
    const { call: one } = await served.calls.beginToolCall({ requestId: uuid(), ...begin });
    const { call: other } = await served.calls.beginToolCall({ requestId: uuid(), ...begin });
    await served.calls.endToolCall({ requestId: uuid(), callId: other!.callId, outcome: succeeded });
    await served.tasks.closeTask({ requestId: uuid(), taskId, wait: true });
    const { call: left } = await served.calls.getToolCall({ callId: one!.callId });
    expect(left).toMatchObject({ state: ToolCallState.UNFINISHED, violations: [] });
    const { call: late } = await served.calls.endToolCall({
      requestId: uuid(),
      callId: one!.callId,
      outcome: succeeded,
    });
    expect(late!.state).toBe(ToolCallState.ENDED);
    expect(violations(late)).toEqual(['ended_late']);
    const { call: after } = await served.calls.beginToolCall({ requestId: uuid(), ...begin });
    expect(after!.state).toBe(ToolCallState.UNFINISHED);
    expect(violations(after)).toEqual(['lease_ended', 'task_ended']);
    expect((await eventsOf(served.estate, taskId)).map(({ kind }) => kind)).toEqual([
      'call.began',
      'call.began',
      'call.ended',
      'call.unfinished',
      'call.ended',
      'call.raised',
      'call.began',
      'call.raised',
    ]);
  });
});

describe('a call that does not fit is recorded and raised', () => {
  const judged = async (call: object) => {
    const answer = await served.calls.recordToolCall({ call: { requestId: uuid(), ...call }, outcome: succeeded });
    return violations(answer.call);
  };

  test('without a lease, with one of another task, with one that never was', async () => {
    const { taskId } = await working(served);
    const other = await working(served);
    const base = { taskId, action: 'orders.list', ...ordersRead };
    expect(await judged(base)).toEqual(['no_lease']);
    const strange = await served.calls.recordToolCall({
      call: { ...base, requestId: uuid(), leaseId: other.leaseId },
      outcome: succeeded,
    });
    expect(violations(strange.call)).toEqual(['lease_unknown']);
    expect(strange.call!.vouching).toMatchObject({
      lease: Voucher.SELF_REPORTED,
      access: Voucher.SELF_REPORTED,
      target: Voucher.SELF_REPORTED,
    });
    expect(await judged({ ...base, leaseId: `lse_${'0'.repeat(32)}` })).toEqual(['lease_unknown']);
    expect(await rowsOf(served.estate, other.taskId)).toEqual([]);
    const raised = (await eventsOf(served.estate, taskId)).filter(({ kind }) => kind === 'call.raised');
    expect(raised).toHaveLength(3);
    expect(served.log.some((line) => line.includes('"call.raised"') && line.includes('no_lease'))).toBe(true);
    const metrics = await (await fetch(`${served.estate.httpUrl}/metrics`)).text();
    expect(metrics).toMatch(
      /leasehold_tool_call_violations_total\{tool="orders",tier="read",violation="no_lease"\} \d+/,
    );
  });

  test('outside the tool, the tier, the action, the arguments and the plan', async () => {
    const { taskId } = await openTask(served, [ordersRead, ordersWrite, mailWrite]);
    const issue = async (args: Record<string, string>) =>
      (await served.agent.issueCredential({ requestId: uuid(), taskId, ...ordersRead, arguments: args })).credential!
        .lease!.leaseId;
    const leaseId = await issue({ shop: 'acme' });
    const base = { taskId, leaseId, action: 'orders.list' };
    expect(await judged(base)).toEqual([]);
    expect(await judged({ ...base, ...mailWrite })).toEqual(['other_tool']);
    expect(await judged({ ...base, tier: Tier.WRITE, action: 'orders.refund' })).toEqual(['other_tier']);
    expect(await judged({ ...base, action: 'orders.refund' })).toEqual(['undeclared_action']);
    expect(await judged({ ...base, arguments: { shop: 'acme', more: true } })).toEqual([]);
    expect(await judged({ ...base, arguments: { shop: 'other' } })).toEqual(['other_arguments']);
    expect(await judged({ ...base, tool: 'warehouse', tier: Tier.WRITE, action: 'select' })).toEqual([
      'other_tool',
      'undeclared_tool',
    ]);
    expect(await judged({ ...base, tool: 'nowhere' })).toEqual(['other_tool', 'undeclared_tool']);
  });

  test('after its lease was given back, and after its task was closed', async () => {
    const { taskId, leaseId } = await working(served);
    const base = { taskId, leaseId, action: 'orders.list' };
    await served.agent.returnCredential({ requestId: uuid(), leaseId });
    expect(await judged(base)).toEqual(['lease_ended']);
    await served.tasks.closeTask({ requestId: uuid(), taskId, wait: true });
    expect(await judged(base)).toEqual(['lease_ended', 'task_ended']);
    // What was over before, and is told within the minute, is as it should be.
    const before = await working(served);
    await served.tasks.closeTask({ requestId: uuid(), taskId: before.taskId, wait: true });
    const at = ms(before.lease.issueTime);
    const { call } = await served.calls.recordToolCall({
      call: { requestId: uuid(), taskId: before.taskId, leaseId: before.leaseId, action: 'orders.list' },
      outcome: succeeded,
      startTime: { seconds: BigInt(Math.floor(at / 1000)), nanos: (at % 1000) * 1e6 },
    });
    expect(violations(call)).toEqual([]);
  });
});

describe('the tool attests what it saw', () => {
  test('its word stands beside that of the agent, and a difference is raised', async () => {
    const { taskId, leaseId } = await working(served);
    const { call: own } = await served.calls.beginToolCall({
      requestId: uuid(),
      taskId,
      leaseId,
      action: 'orders.list',
      arguments: { shop: 'acme' },
    });
    const seen = { taskId, leaseId, action: 'orders.list', arguments: { shop: 'acme' }, aboutCallId: own!.callId };
    const { call } = await served.ordersTool.recordToolCall({
      call: { ...seen, requestId: uuid(), peer: { workload: analystId, address: '192.0.2.7' } },
      outcome: succeeded,
      effect: { rows: 3n },
    });
    expect(call).toMatchObject({
      reporter: ToolCallReporter.TOOL,
      workload: analystId,
      agent: 'analyst',
      reportedBy: 'spiffe://dev.leasehold.test/tool/orders',
      ...ordersRead,
      aboutCallId: own!.callId,
      violations: [],
    });
    expect(call!.vouching).toMatchObject({
      actor: Voucher.BROKER_ATTESTED,
      access: Voucher.BROKER_ATTESTED,
      action: Voucher.TARGET_ATTESTED,
      arguments: Voucher.TARGET_ATTESTED,
      outcome: Voucher.TARGET_ATTESTED,
      effect: Voucher.TARGET_ATTESTED,
      peer: Voucher.TARGET_ATTESTED,
    });
    for (const other of [{ action: 'orders.get' }, { arguments: { shop: 'other' } }]) {
      const answer = await served.ordersTool.recordToolCall({
        call: { ...seen, ...other, requestId: uuid() },
        outcome: succeeded,
      });
      expect(violations(answer.call)).toEqual(['contradicted']);
    }
    const stolen = await served.ordersTool.recordToolCall({
      call: { ...seen, requestId: uuid(), peer: { workload: 'spiffe://dev.leasehold.test/agent/crew/1', address: '' } },
      outcome: succeeded,
    });
    expect(violations(stolen.call)).toEqual(['other_workload']);
  });

  test('it cannot speak of another tool, of no lease, or of what it has no part in', async () => {
    const { taskId, leaseId } = await working(served, ordersRead, [mailWrite]);
    const base = { taskId, leaseId, action: 'orders.list' };
    const report = (client: typeof served.mailTool, call: object) =>
      refusal(client.recordToolCall({ call: { requestId: uuid(), ...base, ...call }, outcome: succeeded }));
    expect(await report(served.mailTool, { tool: 'orders', tier: Tier.READ })).toMatchObject({
      code: 'PermissionDenied',
      reason: 'ROLE_REQUIRED',
    });
    expect(await report(served.ordersTool, { leaseId: '' })).toMatchObject({ reason: 'LEASE_NOT_FOUND' });
    expect(await report(served.ordersTool, { leaseId: `lse_${'0'.repeat(32)}` })).toMatchObject({
      reason: 'LEASE_NOT_FOUND',
    });
    const other = await working(served);
    expect(await report(served.ordersTool, { leaseId: other.leaseId })).toMatchObject({ reason: 'LEASE_NOT_FOUND' });
    expect(await report(served.ordersTool, { taskId: `tsk_${'0'.repeat(32)}` })).toMatchObject({
      reason: 'TASK_NOT_FOUND',
    });
    // The role alone is not enough: the Tool document has to name the workload.
    const unnamed = served.estate.client(
      (await import('../../src/gen/leasehold/v1/tool_call_service_pb.js')).ToolCallService,
      'tool/unnamed',
    );
    expect(await report(unnamed, {})).toMatchObject({ reason: 'TASK_NOT_FOUND' });
    expect(await rowsOf(served.estate, taskId)).toEqual([]);
  });

  test('a credential of another tool that was brought to it is recorded and raised', async () => {
    const { taskId, leaseId } = await working(served, ordersRead, [mailWrite]);
    const { call } = await served.mailTool.recordToolCall({
      call: { requestId: uuid(), taskId, leaseId, action: 'mail.send', tier: Tier.WRITE },
      outcome: ToolCallOutcome.REFUSED,
    });
    expect(call).toMatchObject({ ...mailWrite, target: { resource: 'https://mail.dev.leasehold.test' } });
    expect(violations(call)).toEqual(['other_tool']);
    expect(call!.vouching).toMatchObject({ access: Voucher.TARGET_ATTESTED, target: Voucher.TARGET_ATTESTED });
  });
});
