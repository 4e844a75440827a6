import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { compilePolicy } from '../../src/policy/compile.ts';
import { decideAgain, type TaskFacts } from '../../src/domain/decision-record.ts';
import { recordOf } from '../../src/domain/explanations.ts';
import { timestampMs } from '@bufbuild/protobuf/wkt';
import { Effect, Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { PolicyService } from '../../src/gen/leasehold/v1/policy_service_pb.js';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  held,
  ledgerExecute,
  ledgerRead,
  openTask,
  refusal,
  reportsRead,
  serve,
  ticket,
  tickerRead,
  warehouseWrite,
  type Served,
} from '../e2e/support.ts';
import { runCli } from '../cli/run-cli.ts';

let served: Served;
let policy: ReturnType<typeof client>;
let token: string;
let dir: string;

const client = (workload: string) => served.estate.client(PolicyService, workload);

beforeAll(async () => {
  served = await serve('decisions');
  policy = client('operator');
  dir = await mkdtemp(path.join(tmpdir(), 'leasehold-candidate-'));
  token = path.join(dir, 'token');
  await writeFile(token, await served.estate.mint('operator'), { mode: 0o600 });
});
afterAll(async () => {
  await served?.stop();
  await rm(dir, { recursive: true, force: true });
});

async function cli(...args: string[]) {
  return await runCli(args, { LEASEHOLD_SERVER: served.estate.httpUrl, LEASEHOLD_TOKEN_FILE: token });
}

/** The served policy with one edit, in a directory of its own. */
async function candidate(file: string, edit: (text: string) => string): Promise<string> {
  const directory = await mkdtemp(path.join(dir, 'policy-'));
  await cp(served.estate.policyDir, directory, { recursive: true });
  const place = path.join(directory, file);
  const before = await readFile(place, 'utf8');
  const after = edit(before);
  expect(after).not.toBe(before);
  await writeFile(place, after);
  return directory;
}

async function streamed() {
  const tasks = new Map<string, TaskFacts>();
  const records = [];
  for await (const part of policy.streamDecisions({ since: timestampFromMs(Date.now() - 3_600_000) })) {
    for (const { taskId, facts } of part.tasks) tasks.set(taskId, JSON.parse(facts) as TaskFacts);
    for (const { decisionId, decideTime, taskId, workload, detail } of part.decisions) {
      const raw = { decisionId, at: timestampMs(decideTime!), workload, taskId, leaseId: undefined, detail };
      records.push(recordOf(raw, tasks.get(taskId)!, []));
    }
  }
  return records;
}

test('every recorded decision comes out the same when it is decided again from its record alone', async () => {
  const wanted = [reportsRead, warehouseWrite, ledgerExecute, tickerRead];
  const { taskId } = await openTask(served, wanted);
  const withTicket = await openTask(served, wanted, { context: ticket });
  held(await served.agent.issueCredential({ taskId: withTicket.taskId, ...warehouseWrite }));
  const labelled = await openTask(served, [ledgerRead], { agent: 'crew', labels: { env: 'prod' } });
  held(
    await served.estate
      .client(CredentialService, 'agent/crew/1')
      .issueCredential({ taskId: labelled.taskId, ...ledgerRead }),
  );
  await refusal(served.agent.issueCredential({ taskId, ...warehouseWrite }));
  await refusal(served.agent.issueCredential({ taskId, ...ledgerExecute }));
  let { lease } = held(await served.agent.issueCredential({ taskId, ...reportsRead }));
  for (let renewals = 0; renewals < 3; renewals++) {
    ({ lease } = held(await served.agent.renewCredential({ leaseId: lease.leaseId })));
  }
  const short = await openTask(served, [reportsRead], { ttl: { seconds: 3n, nanos: 0 } });
  await served.agent.issueCredential({ taskId: short.taskId, ...reportsRead }).catch(() => undefined);

  const { documents } = await policy.getRevision({});
  const revision = compilePolicy(JSON.parse(documents) as unknown[]);
  const records = await streamed();
  expect(records.length).toBeGreaterThanOrEqual(8);
  expect(new Set(records.map(({ detail }) => detail.effect))).toEqual(new Set(['allow', 'deny', 'needs_approval']));
  for (const record of records) {
    const again = decideAgain(revision, record);
    expect({
      effect: again.effect,
      rule: again.rule,
      reason: again.reason,
      life: again.effect === 'allow' ? again.life : undefined,
    }).toEqual({
      effect: record.detail.effect,
      rule: record.detail.rule,
      reason: record.detail.reason,
      life: record.detail.ttl_ms,
    });
  }
});

describe('an explanation', () => {
  test('names every rule considered, what its condition saw, and what won', async () => {
    const { taskId } = await openTask(served, [warehouseWrite]);
    const refused = await refusal(served.agent.issueCredential({ taskId, ...warehouseWrite }));
    const answer = await policy.explainDecision({
      subject: { case: 'decisionId', value: refused.metadata['decision']! },
    });
    expect(answer).toMatchObject({
      effect: Effect.DENY,
      policyRule: 'analyst/write-needs-change-ticket',
      reproduced: true,
    });
    const rules = Object.fromEntries(answer.rules.map((rule) => [rule.rule, rule]));
    expect(rules['analyst/write-needs-change-ticket']).toMatchObject({
      effect: 'deny',
      matched: true,
      decided: true,
      saw: [{ expression: 'task.context.change_ticket', value: 'absent' }],
    });
    expect(rules['analyst/write-with-change-ticket']).toMatchObject({
      effect: 'allow',
      matched: false,
      decided: false,
    });
    expect(rules['analyst/read']).toBeUndefined();
  });

  test('of a credential is found by its lease, and its agent gets the short reason alone', async () => {
    const { taskId } = await openTask(served, [warehouseWrite], { context: ticket });
    const { lease } = held(await served.agent.issueCredential({ taskId, ...warehouseWrite }));
    const subject = { case: 'decisionId' as const, value: lease.leaseId };
    const full = await policy.explainDecision({ subject });
    const seen = full.rules.find(({ rule }) => rule === 'analyst/write-with-change-ticket')!.saw;
    expect(seen).toContainEqual(
      expect.objectContaining({ expression: 'task.context.change_ticket', value: '"CHG-1"' }),
    );
    expect(seen.map(({ expression }) => expression)).toContain('task.age');
    const short = await client('agent/analyst').explainDecision({ subject });
    expect(short).toMatchObject({ effect: Effect.ALLOW, policyRule: full.policyRule, reason: full.reason, rules: [] });
    expect(short.input).toBeUndefined();
    // Another agent learns not even that there is such a decision.
    expect(await refusal(client('agent/crew/1').explainDecision({ subject }))).toMatchObject({
      reason: 'DECISION_NOT_FOUND',
    });
  });

  test('of a request that nobody made follows its context', async () => {
    const ask = (context: Record<string, string>) =>
      policy.explainDecision({
        subject: { case: 'hypothetical', value: { agent: 'analyst', access: warehouseWrite, context } },
      });
    expect(await ask({})).toMatchObject({ effect: Effect.DENY, policyRule: 'analyst/write-needs-change-ticket' });
    expect(await ask(ticket)).toMatchObject({ effect: Effect.ALLOW, policyRule: 'analyst/write-with-change-ticket' });
    expect(
      await refusal(
        client('agent/analyst').explainDecision({
          subject: { case: 'hypothetical', value: { agent: 'analyst', access: { tool: 'reports', tier: Tier.READ } } },
        }),
      ),
    ).toMatchObject({ reason: 'ROLE_REQUIRED' });
  });

  test('sees the labels, of a task or of one that might be', async () => {
    const { taskId } = await openTask(served, [ledgerRead], { agent: 'crew', labels: { env: 'prod' } });
    for (const asked of [{ taskId }, { agent: 'crew', labels: { env: 'prod' } }]) {
      const { effect, rules } = await policy.explainDecision({
        subject: { case: 'hypothetical', value: { access: ledgerRead, ...asked } },
      });
      expect(effect).toBe(Effect.ALLOW);
      expect(rules.find(({ decided }) => decided)?.saw).toContainEqual(
        expect.objectContaining({ expression: 'task.labels.env', value: '"prod"' }),
      );
    }
    const other = ['policy', 'explain', '--agent', 'crew', '--tool', 'ledger:read', '--label', 'env=test'];
    expect((await cli(...other)).stdout).toContain('task.labels.env = "test"');
  });

  test('is readable on a terminal', async () => {
    const { code, stdout } = await cli('policy', 'explain', '--agent', 'analyst', '--tool', 'warehouse:write');
    expect(code).toBe(0);
    expect(stdout).toContain('analyst/write-needs-change-ticket (deny): decided');
    expect(stdout).toContain('task.context.change_ticket = absent');
  });
});

describe('a replay', () => {
  test('of the running policy finds no difference', async () => {
    const { code, stdout, stderr } = await cli(
      'policy',
      'replay',
      '--candidate',
      served.estate.policyDir,
      '--since',
      '1h',
      '--json',
    );
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const result = JSON.parse(stdout) as { decided: number; same: number; groups: unknown[] };
    expect(result.decided).toBeGreaterThan(5);
    expect(result.same).toBe(result.decided);
    expect(result.groups).toEqual([]);
  });

  test('shows what a candidate would deny, allow and shorten, by agent and tool, with samples', async () => {
    const stricter = await candidate('analyst.yaml', (text) =>
      text
        .replace('tools: [reports, warehouse]', 'tools: [warehouse]')
        .replace("when: '!has(task.context.change_ticket)'", 'when: "false"')
        .replace('ttl: 5m', 'ttl: 2m'),
    );
    const { stdout } = await cli('policy', 'replay', '--candidate', stricter, '--since', '1h', '--json');
    const result = JSON.parse(stdout) as {
      groups: { difference: string; agent: string; access: string; count: number; samples: { decisionId: string }[] }[];
    };
    const found = result.groups.map(({ difference, agent, access }) => `${difference} ${agent} ${access}`);
    expect(found).toContain('newly_denied analyst reports:read');
    expect(found).toContain('shorter_life analyst warehouse:write');
    for (const group of result.groups) expect(group.samples[0]!.decisionId).toMatch(/^dec_[0-9a-f]{32}$/);
    const people = await cli('policy', 'replay', '--candidate', stricter, '--since', '1h');
    expect(people.stdout).toContain('Newly denied: ');
  });

  test('of a candidate with a mistake says where it is, and asks the broker nothing', async () => {
    const broken = await candidate('analyst.yaml', (text) => text.replace('[reports, warehouse]', '[reprots]'));
    const { code, stderr } = await cli('policy', 'replay', '--candidate', broken);
    expect(code).toBe(9);
    expect(stderr).toMatch(/analyst\.yaml:\d+:\d+: .*there is no tool "reprots"/);
  });
});

describe('the other commands', () => {
  test('apply with a dry run, diff and list', async () => {
    const edited = await candidate('analyst.yaml', (text) => text.replace('ttl: 10m', 'ttl: 9m'));
    const dry = await cli('policy', 'apply', edited, '--dry-run');
    expect(dry.stdout).toContain('~ Policy analyst, rule read');
    expect(dry.stdout).toContain('obligations.ttl: "9m"');
    expect(dry.stdout).toContain('nothing was changed');
    const refused = await cli('policy', 'apply', edited);
    expect(refused.code).toBe(6);
    expect(refused.stderr).toContain('POLICY_SOURCE');
    const diff = await cli('policy', 'diff', edited);
    expect(diff.stdout).toContain('~ Policy analyst, rule read');
    const list = await cli('policy', 'list');
    expect(list.stdout).toContain('directory');
    const broken = await candidate('analyst.yaml', (text) => text.replace('[reports, warehouse]', '[reprots]'));
    const mistakes = await cli('policy', 'apply', broken, '--dry-run');
    expect(mistakes.code).toBe(9);
    expect(mistakes.stderr).toContain(path.join(broken, 'analyst.yaml:'));
  });
});
