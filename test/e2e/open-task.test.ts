import { randomUUID } from 'node:crypto';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Effect, RevocationKind, TaskState, Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import type { Served } from './support.ts';
import {
  analystId,
  ledgerExecute,
  ledgerRead,
  ms,
  openTask,
  orchestratorId,
  refusal,
  reportsRead,
  serve,
  sql,
  ticket,
  warehouseRead,
  warehouseWrite,
} from './support.ts';

let served: Served;
beforeAll(async () => {
  served = await serve('open');
});
afterAll(() => served.stop());

describe('the plan of a task', () => {
  test('says per tool and tier whether it is allowed, why, for how long, by whom and what revoking means', async () => {
    const { task, plan, policyRevision } = await openTask(served, [
      reportsRead,
      warehouseWrite,
      ledgerExecute,
      ledgerRead,
      { tool: 'reports', tier: Tier.WRITE },
    ]);
    expect(plan).toMatchObject([
      {
        ...reportsRead,
        effect: Effect.ALLOW,
        policyRule: 'analyst/read',
        ttl: { seconds: 600n, nanos: 0 },
        provider: 'jwt',
        revocationKind: RevocationKind.IMMEDIATE,
      },
      {
        ...warehouseWrite,
        effect: Effect.DENY,
        policyRule: 'analyst/write-needs-change-ticket',
        reason: expect.stringContaining('needs a change ticket'),
      },
      {
        ...ledgerExecute,
        effect: Effect.NEEDS_APPROVAL,
        policyRule: 'e2e/ledger-execute',
        reason: expect.stringContaining('approves it'),
      },
      { ...ledgerRead, effect: Effect.ALLOW, ttl: { seconds: 60n }, revocationKind: RevocationKind.BOUNDED },
      {
        tool: 'reports',
        tier: Tier.WRITE,
        effect: Effect.DENY,
        policyRule: '',
        reason: expect.stringContaining('no rule'),
      },
    ]);
    for (const entry of plan.filter(({ effect }) => effect !== Effect.ALLOW)) expect(entry.ttl).toBeUndefined();
    expect(policyRevision).toMatch(/^sha256:[0-9a-f]{64}$/);
    expect(task).toMatchObject({ state: TaskState.OPEN, opener: orchestratorId, agentWorkload: '', epoch: 1n });
    expect(task.rootTaskId).toBe(task.taskId);
  });

  test('follows the context that the opener states, and the life of the task bounds what it promises', async () => {
    const { plan } = await openTask(served, [warehouseWrite, warehouseRead], {
      context: ticket,
      ttl: { seconds: 120n },
    });
    expect(plan).toMatchObject([
      { effect: Effect.ALLOW, provider: 'postgres', ttl: { seconds: 120n } },
      { effect: Effect.ALLOW, provider: 'postgres', ttl: { seconds: 120n } },
    ]);
  });

  test('is about the same task that the database holds', async () => {
    const deadline = Date.now() + 600_000;
    const { taskId } = await openTask(served, [reportsRead], {
      intent: '  count the invoices  ',
      context: { b: '2', a: '1' },
      labels: { team: 'data', env: 'prod' },
      deadline: timestampFromMs(deadline),
      agentWorkload: analystId,
      heartbeatInterval: { seconds: 60n },
    });
    expect(
      await sql(served.estate.databaseUrl, 'SELECT * FROM leasehold.tasks WHERE task_id = $1', [taskId]),
    ).toMatchObject([
      {
        intent: 'count the invoices',
        agent: 'analyst',
        opener: orchestratorId,
        agent_workload: analystId,
        tools: [{ tool: 'reports', tier: 'read' }],
        context: { a: '1', b: '2' },
        labels: { env: 'prod', team: 'data' },
        state: 'open',
        deadline: new Date(deadline),
        heartbeat_ms: '60000',
      },
    ]);
  });
});

describe('a task that does not make sense is refused at the field', () => {
  const good = () => ({ intent: 'x', agent: 'analyst', tools: [reportsRead] });
  const in10s = () => timestampFromMs(Date.now() + 10_000);
  const many = Array.from({ length: 65 }, (_, index) => ({ tool: `t${index}`, tier: Tier.READ }));
  const context = (count: number) =>
    Object.fromEntries(Array.from({ length: count }, (_, index) => [`k${index}`, 'v']));

  test.each([
    ['no intent', 'intent', () => ({ intent: '   ' })],
    ['an intent of 2,001 characters', 'intent', () => ({ intent: 'x'.repeat(2_001) })],
    ['no agent', 'agent', () => ({ agent: '' })],
    ['an agent that is no name', 'agent', () => ({ agent: '../analyst' })],
    ['an agent that nobody registered', 'agent', () => ({ agent: 'nobody' })],
    ['no tools', 'tools', () => ({ tools: [] })],
    ['65 tools', 'tools', () => ({ tools: many })],
    ['a tool twice', 'tools[1]', () => ({ tools: [reportsRead, reportsRead] })],
    [
      'a tool that nobody registered',
      'tools[1]',
      () => ({ tools: [reportsRead, { tool: 'nothing', tier: Tier.READ }] }),
    ],
    ['a tool that is no name', 'tools[0].tool', () => ({ tools: [{ tool: 'a b', tier: Tier.READ }] })],
    ['a tier that its tool has not', 'tools[0]', () => ({ tools: [{ tool: 'reports', tier: Tier.EXECUTE }] })],
    ['no tier', 'tools[0].tier', () => ({ tools: [{ tool: 'reports', tier: Tier.UNSPECIFIED }] })],
    ['a tier of a later release', 'tools[0].tier', () => ({ tools: [{ tool: 'reports', tier: 17 as Tier }] })],
    ['a context key with capitals', 'context', () => ({ context: { Ticket: 'x' } })],
    ['a context key that is empty', 'context', () => ({ context: { '': 'x' } })],
    ['a context key of 64 characters', 'context', () => ({ context: { ['k'.repeat(64)]: 'x' } })],
    ['a context value of 1,025 characters', 'context["note"]', () => ({ context: { note: 'x'.repeat(1_025) } })],
    ['65 context entries', 'context', () => ({ context: context(65) })],
    ['a label with capitals', 'labels', () => ({ labels: { Team: 'x' } })],
    ['a label that ends in a dot', 'labels', () => ({ labels: { 'team.': 'x' } })],
    ['a label of 64 characters', 'labels', () => ({ labels: { ['k'.repeat(64)]: 'x' } })],
    ['a label of 257 characters', 'labels["team"]', () => ({ labels: { team: 'x'.repeat(257) } })],
    ['65 labels', 'labels', () => ({ labels: context(65) })],
    ['a deadline and a ttl', 'ttl', () => ({ deadline: in10s(), ttl: { seconds: 10n } })],
    ['a deadline in the past', 'deadline', () => ({ deadline: timestampFromMs(Date.now() - 1_000) })],
    [
      'a deadline beyond the longest life',
      'deadline',
      () => ({ deadline: timestampFromMs(Date.now() + 25 * 3_600_000) }),
    ],
    ['a ttl of nothing', 'ttl', () => ({ ttl: { seconds: 0n } })],
    ['a negative ttl', 'ttl', () => ({ ttl: { seconds: -5n } })],
    ['a ttl beyond the longest life', 'ttl', () => ({ ttl: { seconds: 25n * 3_600n } })],
    ['an absurd ttl', 'ttl', () => ({ ttl: { seconds: 9_000_000_000_000_000n } })],
    [
      'a workload of another agent',
      'agent_workload',
      () => ({ agentWorkload: 'spiffe://dev.leasehold.test/agent/crew/1' }),
    ],
    ['a workload that is none', 'agent_workload', () => ({ agentWorkload: 'nobody at all' })],
    ['a heartbeat under one second', 'heartbeat_interval', () => ({ heartbeatInterval: { nanos: 999_000_000 } })],
    ['a heartbeat over a day', 'heartbeat_interval', () => ({ heartbeatInterval: { seconds: 86_401n } })],
    ['a request_id that is no UUID', 'request_id', () => ({ requestId: 'once more' })],
  ])('%s', async (_what, field, change) => {
    const refused = await refusal(served.tasks.openTask({ ...good(), ...change() }));
    expect(refused).toMatchObject({ code: 'InvalidArgument', fields: [field] });
    expect(refused.reason).toMatch(/^(FIELD_INVALID|NAME_UNKNOWN)$/);
    expect(refused.message).toContain(field);
  });

  test('64 tools, 64 context entries, 64 labels and the longest intent are not too much', async () => {
    // Only six tiers are registered: what is refused is the first unknown name, not their number.
    const refused = await refusal(
      served.tasks.openTask({
        ...good(),
        intent: 'x'.repeat(2_000),
        context: context(64),
        labels: context(64),
        tools: many.slice(1),
      }),
    );
    expect(refused).toMatchObject({ reason: 'NAME_UNKNOWN', fields: ['tools[0]'] });
  });

  test('and nothing of it is recorded', async () => {
    const count = 'SELECT count(*)::int AS n FROM leasehold.tasks';
    const [before] = await sql(served.estate.databaseUrl, count);
    await refusal(served.tasks.openTask({ ...good(), agent: 'nobody' }));
    expect(await sql(served.estate.databaseUrl, count)).toEqual([before]);
  });
});

describe('a request_id', () => {
  test('opens one task however often and however simultaneously it is sent', async () => {
    const request = {
      requestId: randomUUID(),
      intent: 'once',
      agent: 'analyst',
      tools: [reportsRead],
      context: { b: '1', a: '2' },
      labels: { d: '1', c: '2' },
    };
    const answers = await Promise.all(Array.from({ length: 8 }, () => served.tasks.openTask(request)));
    const again = await served.tasks.openTask({
      ...request,
      context: { a: '2', b: '1' },
      labels: { c: '2', d: '1' },
    });
    expect(new Set([...answers, again].map(({ task }) => task!.taskId)).size).toBe(1);
    expect(again.plan).toMatchObject([{ effect: Effect.ALLOW }]);
    const taskId = again.task!.taskId;
    expect(
      await sql(served.estate.databaseUrl, 'SELECT kind FROM leasehold.audit_events WHERE task_id = $1', [taskId]),
    ).toEqual([{ kind: 'task.opened' }]);
  });

  test.each([
    ['another intent', { intent: 'twice' }],
    ['other tools', { tools: [reportsRead, warehouseRead] }],
    ['another context', { context: { a: '1' } }],
    ['other labels', { labels: { a: '1' } }],
    ['another ttl', { ttl: { seconds: 61n } }],
  ])('with %s is a mistake that is told', async (_what, change) => {
    const request = { requestId: randomUUID(), intent: 'once', agent: 'analyst', tools: [reportsRead] };
    await served.tasks.openTask(request);
    expect(await refusal(served.tasks.openTask({ ...request, ...change }))).toMatchObject({
      code: 'AlreadyExists',
      reason: 'REQUEST_ID_REUSED',
    });
  });

  test('answers with the task as it is now, also once it is closed', async () => {
    const request = {
      requestId: randomUUID(),
      intent: 'once',
      agent: 'analyst',
      tools: [reportsRead],
      ttl: { seconds: 60n },
    };
    const first = await served.tasks.openTask(request);
    await served.tasks.closeTask({ taskId: first.task!.taskId, wait: true });
    const again = await served.tasks.openTask(request);
    expect(again.task).toMatchObject({ taskId: first.task!.taskId, state: TaskState.CLOSED });
    expect(ms(again.task!.deadline)).toBe(ms(first.task!.deadline));
    expect(again.plan).toMatchObject([{ ...reportsRead, effect: Effect.DENY, reason: 'the task has ended' }]);
  });

  test('answers a retry although its deadline has passed meanwhile', async () => {
    const deadline = timestampFromMs(Date.now() + 1_500);
    const request = { requestId: randomUUID(), intent: 'once', agent: 'analyst', tools: [reportsRead], deadline };
    const first = await served.tasks.openTask(request);
    await expect
      .poll(async () => (await served.tasks.getTask({ taskId: first.task!.taskId })).task!.state, { timeout: 10_000 })
      .toBe(TaskState.CLOSED);
    expect((await served.tasks.openTask(request)).task!.taskId).toBe(first.task!.taskId);
  });
});

describe('what the broker says of itself', () => {
  test('is that it can issue, part by part, and under which policy', async () => {
    const status = await served.admin.getStatus({});
    expect(status).toMatchObject({
      ready: true,
      policyError: '',
      schemaVersion: expect.any(Number),
      troubledLeases: 0n,
    });
    expect(status.components.every(({ ready }) => ready)).toBe(true);
    expect(status.components.map(({ name }) => name)).toEqual(
      expect.arrayContaining(['storage', 'policy', 'signing-keys', 'trust-domain/dev.leasehold.test']),
    );
    expect(status.policyRevision).toBe((await openTask(served, [reportsRead])).policyRevision);
  });

  test('counts the leases that are not settled, as the database has them', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    for (let index = 0; index < 3; index++) await served.agent.issueCredential({ taskId, ...reportsRead });
    const count = `SELECT count(*) AS n FROM leasehold.leases WHERE state <> 'settled'`;
    const [row] = await sql(served.estate.databaseUrl, count);
    expect((await served.admin.getStatus({})).openLeases).toBe(BigInt(row!.n as string));
    expect(BigInt(row!.n as string)).toBeGreaterThanOrEqual(3n);
  });

  test('lists the registered tools with what each tier would give', async () => {
    const { tools } = await served.admin.listTools({});
    expect(tools.map(({ name }) => name)).toEqual(['kiosk', 'ledger', 'reports', 'ticker', 'warehouse']);
    expect(tools.find(({ name }) => name === 'reports')).toMatchObject({
      owner: 'reporting@leasehold.test',
      resource: 'https://reports.dev.leasehold.test',
      tiers: [
        { tier: Tier.READ, provider: 'jwt', defaultTtl: { seconds: 300n }, maxTtl: { seconds: 1_800n } },
        { tier: Tier.WRITE, provider: 'jwt', maxTtl: { seconds: 600n } },
      ],
    });
  });
});
