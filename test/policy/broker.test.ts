import { randomUUID } from 'node:crypto';
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { durationFromMs, timestampMs } from '@bufbuild/protobuf/wkt';
import type { Client } from '@connectrpc/connect';
import { decodeJwt } from 'jose';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { AuditService } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { Effect, Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import type { Credential } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { PolicyService } from '../../src/gen/leasehold/v1/policy_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { runCli } from '../cli/run-cli.ts';
import { createEstate, startInProcess } from '../support/broker.ts';
import type { TestEstate } from '../support/broker.ts';

const policy = `
apiVersion: leasehold.dev/v1
kind: Agent
metadata: { name: clerk, owner: o, labels: { team: support } }
spec: { workloads: [spiffe://dev.leasehold.test/agent/clerk], risk: low }
---
apiVersion: leasehold.dev/v1
kind: Defaults
metadata: { name: organisation, owner: o }
spec: { ttl: { min: 1m, default: 5m, max: 1h } }
---
apiVersion: leasehold.dev/v1
kind: Tool
metadata: { name: crm, owner: o, labels: { sensitivity: customer } }
spec:
  resource: https://crm.test
  tiers: { read: { provider: jwt, revocation: immediate } }
---
apiVersion: leasehold.dev/v1
kind: Tool
metadata: { name: mail, owner: o }
spec:
  resource: https://mail.test
  tiers: { write: { provider: jwt, revocation: immediate } }
---
apiVersion: leasehold.dev/v1
kind: Tool
metadata: { name: pay, owner: o }
spec:
  resource: https://pay.test
  tiers:
    write:
      provider: jwt
      revocation: immediate
      actions: [refund]
      arguments:
        order: { type: string, required: true, pattern: 'ORD-[0-9]+' }
        amount: { type: integer, minimum: 1, maximum: 1000 }
---
apiVersion: leasehold.dev/v1
kind: Policy
metadata: { name: support, owner: o }
spec:
  rules:
    - { name: crm, agents: [clerk], tools: [crm], tiers: [read], effect: allow, obligations: { renewal: { notBefore: 4m } } }
    - { name: mail, agents: [clerk], tools: [mail], tiers: [write], effect: allow, when: "rate.agent('1h', 'mail') < 3" }
    - name: no-mail-after-customer-data
      agents: [clerk]
      tools: [mail]
      tiers: [write]
      effect: deny
      when: held.label('sensitivity', 'customer')
      reason: A task that has read customer data sends no mail.
    - name: refund
      agents: [clerk]
      tools: [pay]
      tiers: [write]
      effect: allow
      when: environment.region == 'eu' && args.order.startsWith('ORD-')
      obligations: { maxUses: 2, arguments: { amount: { maximum: 100 } } }
`;

let estate: TestEstate;
let stop: () => Promise<void>;
let tasks: Client<typeof TaskService>;
let agent: Client<typeof CredentialService>;
const tools = [
  { tool: 'crm', tier: Tier.READ },
  { tool: 'mail', tier: Tier.WRITE },
  { tool: 'pay', tier: Tier.WRITE },
];

beforeAll(async () => {
  estate = await createEstate('policy', { environment: { region: 'eu' } });
  await rm(path.join(estate.policyDir, 'analyst.yaml'), { force: true });
  await writeFile(path.join(estate.policyDir, 'support.yaml'), policy);
  const broker = await startInProcess(estate);
  stop = () => broker.stop(500);
  tasks = estate.client(TaskService, 'orchestrator');
  agent = estate.client(CredentialService, 'agent/clerk');
});
afterAll(async () => {
  await stop();
  await estate.remove();
});

async function open(): Promise<string> {
  const { task } = await tasks.openTask({
    requestId: randomUUID(),
    intent: 'test',
    agent: 'clerk',
    tools,
    ttl: durationFromMs(3_600_000),
  });
  return task!.taskId;
}

const issue = (taskId: string, index: number, args?: Record<string, string | number>, requestId = randomUUID()) =>
  agent.issueCredential({ requestId, taskId, ...tools[index]!, ...(args === undefined ? {} : { arguments: args }) });

function detailsOf(answer: { credential?: Credential | undefined }): unknown {
  const { material } = answer.credential!;
  if (material.case !== 'accessToken') throw new Error('no token');
  return decodeJwt(material.value.token)['authorization_details'];
}

test('a plan says what depends on the request, and promises no more than the rest', async () => {
  const requestId = randomUUID();
  const request = { requestId, intent: 'test', agent: 'clerk', tools, ttl: durationFromMs(3_600_000) };
  const { plan, task } = await tasks.openTask(request);
  expect(plan).toMatchObject([
    { tool: 'crm', effect: Effect.ALLOW, dependsOn: [], possible: [] },
    {
      tool: 'mail',
      effect: Effect.DEPENDS,
      dependsOn: ["rate.agent('1h', 'mail')"],
      possible: [Effect.ALLOW, Effect.DENY],
      provider: 'jwt',
      ttl: { seconds: 300n },
    },
    {
      tool: 'pay',
      effect: Effect.DEPENDS,
      dependsOn: ['args.amount', 'args.order'],
      possible: [Effect.ALLOW, Effect.DENY],
      reason: expect.stringContaining('rule support/refund may allow it within limits on args.amount'),
    },
  ]);
  const { events } = await estate.client(AuditService, 'auditor').listAuditEvents({ taskId: task!.taskId });
  expect(events[0]!.detail!['plan']).toMatchObject([
    { effect: 'allow' },
    { effect: 'depends', depends_on: ["rate.agent('1h', 'mail')"] },
    { effect: 'depends' },
  ]);
  // The same call again is answered with what holds by then.
  await issue(task!.taskId, 0);
  const again = await tasks.openTask(request);
  expect(again.plan[1]).toMatchObject({ effect: Effect.DENY, policyRule: 'support/no-mail-after-customer-data' });
});

test('an explanation of a request that nobody made declares arguments, and refuses them as the request would be', async () => {
  const policies = estate.client(PolicyService, 'operator');
  const explain = (args: Record<string, string | number>) =>
    policies.explainDecision({
      subject: { case: 'hypothetical', value: { agent: 'clerk', access: tools[2]!, arguments: args } },
    });
  expect(await explain({ order: 'ORD-1', amount: 100 })).toMatchObject({ effect: Effect.ALLOW });
  expect(await explain({ order: 'ORD-1', amount: 101 })).toMatchObject({
    effect: Effect.DENY,
    reason: expect.stringContaining('limits arguments.amount'),
  });
  await expect(explain({ order: 'ORD-1', amount: 'x' })).rejects.toThrow(/arguments.amount: must be a whole number/);
});

describe('arguments of a request', () => {
  test('are in the token, in the audit, and the same at a renewal and a retry', async () => {
    const taskId = await open();
    const requestId = randomUUID();
    const first = await issue(taskId, 2, { order: 'ORD-1', amount: 40 }, requestId);
    const expected = [
      {
        type: 'leasehold_tool',
        tool: 'pay',
        tier: 'write',
        actions: ['refund'],
        arguments: { amount: 40, order: 'ORD-1' },
      },
    ];
    expect(detailsOf(first)).toEqual(expected);
    expect(detailsOf(await issue(taskId, 2, { amount: 40, order: 'ORD-1' }, requestId))).toEqual(expected);
    await expect(issue(taskId, 2, { order: 'ORD-2', amount: 40 }, requestId)).rejects.toThrow(/another credential/);
    const renewed = await agent.renewCredential({ requestId: randomUUID(), leaseId: first.credential!.lease!.leaseId });
    expect(detailsOf(renewed)).toEqual(expected);

    const { events } = await estate.client(AuditService, 'auditor').listAuditEvents({ taskId, pageSize: 100 });
    const made = events.filter(({ kind }) => kind === 'decision.made').map(({ detail }) => detail!);
    expect(made).toHaveLength(2);
    for (const detail of made) {
      expect(detail['arguments']).toEqual({ amount: 40, order: 'ORD-1' });
      // printf '{"amount":40,"order":"ORD-1"}' | sha256sum
      expect(detail['arguments_digest']).toBe(
        'sha256:3b70c82c55d3314be6a9e46710e052ff14ac9db5618a8b358108d0dfd4dc683e',
      );
    }
  });

  test('that are not given are limited in the token instead', async () => {
    expect(detailsOf(await issue(await open(), 2, { order: 'ORD-1' }))).toMatchObject([
      { arguments: { order: 'ORD-1' }, argument_limits: { amount: { maximum: 100 } } },
    ]);
  });

  test.each([
    [{}, /arguments.order: is required by pay:write/],
    [{ order: 'X' }, /arguments.order: must match/],
    [{ order: 'ORD-1', amount: 1.5 }, /arguments.amount: must be a whole number/],
    [{ order: 'ORD-1', amount: 2000 }, /arguments.amount: must be at most 1000/],
    [{ order: 'ORD-1', color: 'red' }, /arguments.color: is not an argument of pay:write; it takes order, amount/],
    [
      { order: 'ORD-1', amount: 101 },
      /pay:write is denied: rule support\/refund limits arguments.amount: it must be at most 100/,
    ],
  ] as [Record<string, string | number>, RegExp][])('%j are refused', async (args, why) => {
    await expect(issue(await open(), 2, args)).rejects.toThrow(why);
  });

  test('to a tool that takes none are refused', async () => {
    await expect(issue(await open(), 0, { a: 'b' })).rejects.toThrow(/is not an argument of crm:read; it takes none/);
  });
});

test('a retry of a counted request gets its own credential, and its renewal counts nothing', async () => {
  const taskId = await open();
  const requestId = randomUUID();
  await issue(taskId, 2, { order: 'ORD-1' });
  const second = await issue(taskId, 2, { order: 'ORD-1' }, requestId);
  const { leaseId } = second.credential!.lease!;
  expect((await issue(taskId, 2, { order: 'ORD-1' }, requestId)).credential!.lease!.leaseId).toBe(leaseId);
  await agent.renewCredential({ requestId: randomUUID(), leaseId });
  await expect(issue(taskId, 2, { order: 'ORD-1' })).rejects.toThrow(/2 times in one task, which have been used/);
});

describe('what a task has held', () => {
  test('keeps reading customer data and sending mail apart, in this order and not in the other', async () => {
    const reads = await open();
    await issue(reads, 0);
    await expect(issue(reads, 1)).rejects.toThrow(/A task that has read customer data sends no mail/);
    const mails = await open();
    await issue(mails, 1);
    await issue(mails, 0);
  });

  test('bounds the number of its credentials, exactly, however many ask at once', async () => {
    const taskId = await open();
    const results = await Promise.allSettled(Array.from({ length: 20 }, () => issue(taskId, 2, { order: 'ORD-1' })));
    expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(2);
    const reasons = results.flatMap((result) => (result.status === 'rejected' ? [String(result.reason)] : []));
    for (const reason of reasons) expect(reason).toMatch(/allows pay:write 2 times in one task, which have been used/);
  });
});

test('a rate counts what the agent was issued in all its tasks', async () => {
  // One was issued above.
  await issue(await open(), 1);
  await issue(await open(), 1);
  await expect(issue(await open(), 1)).rejects.toThrow(/the condition of support\/mail does not hold/);
});

test('a renewal waits until policy wants it, is told when that is, and a refused one says what still lives', async () => {
  const { credential } = await issue(await open(), 0);
  const { lease, renewAfter } = credential!;
  expect(timestampMs(renewAfter!) - timestampMs(lease!.issueTime!)).toBe(240_000);
  await expect(agent.renewCredential({ requestId: randomUUID(), leaseId: lease!.leaseId })).rejects.toThrow(
    /crm:read is not renewed: rule support\/crm renews a credential once it is 4m old: ask again in .*; the present credential lives until 20/,
  );
});

describe('a replay of what was recorded here', () => {
  const replay = async (edit: (text: string) => string) => {
    const dir = await mkdtemp(path.join(tmpdir(), 'leasehold-replay-'));
    try {
      await cp(estate.policyDir, path.join(dir, 'policies'), { recursive: true });
      await writeFile(path.join(dir, 'policies', 'support.yaml'), edit(policy));
      await writeFile(path.join(dir, 'token'), await estate.mint('auditor'), { mode: 0o600 });
      const { stdout } = await runCli(
        ['policy', 'replay', '--candidate', path.join(dir, 'policies'), '--since', '1h', '--json'],
        { LEASEHOLD_SERVER: estate.httpUrl, LEASEHOLD_TOKEN_FILE: path.join(dir, 'token') },
      );
      return JSON.parse(stdout) as {
        decided: number;
        same: number;
        groups: { difference: string; access: string; count: number; samples: { reason: string; after: string }[] }[];
      };
    } finally {
      await rm(dir, { recursive: true, force: true });
    }
  };
  const named = ({ groups }: Awaited<ReturnType<typeof replay>>) =>
    groups.map(({ difference, access }) => `${difference} ${access}`);

  test('comes out the same under the same policy, arguments, counts, rates and environment included', async () => {
    const all = await replay((text) => text);
    expect(all.groups).toEqual([]);
    expect(all.decided).toBeGreaterThan(30);
    expect(all.same).toBe(all.decided);
  });

  test('shows whom another bound on an argument would have refused', async () => {
    const result = await replay((text) => text.replace('amount: { maximum: 100 }', 'amount: { maximum: 30 }'));
    expect(named(result)).toEqual(['newly_denied pay:write']);
    expect(result.groups[0]!.samples[0]!.reason).toContain('must be at most 30');
  });

  test('shows what other counts and rates, as they were then, would have allowed and refused', async () => {
    const moreUses = await replay((text) => text.replace('maxUses: 2', 'maxUses: 3'));
    expect(named(moreUses)).toEqual(['newly_allowed pay:write']);
    const slower = await replay((text) => text.replace("rate.agent('1h', 'mail') < 3", "rate.agent('1h', 'mail') < 1"));
    expect(named(slower)).toEqual(['newly_denied mail:write']);
    const together = await replay((text) => text.replace("held.label('sensitivity', 'customer')", "held.tool('pay')"));
    expect(named(together)).toEqual(['newly_allowed mail:write']);
  });

  test('of a candidate that counts what was not counted then says that it cannot tell, and guesses nothing', async () => {
    const result = await replay((text) => text.replace("'mail') < 3", "'mail') < 3 && rate.tool('2h') < 100"));
    expect(named(result)).toEqual(['cannot_be_told mail:write']);
    expect(result.groups[0]!.samples[0]).toMatchObject({
      after: 'unknown',
      reason: "it depends on rate.tool('2h'): rule support/mail may allow it",
    });
    // What is denied whatever the count is, is the same.
    expect(result.same).toBe(result.decided - result.groups[0]!.count);
  });
});
