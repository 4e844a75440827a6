import { createHash } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { AuditService } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { exitCodes } from '../../src/cli/exit-codes.ts';
import { runCli } from '../cli/run-cli.ts';
import { brokerRows, callers, logIn, loginOf, refusalOf } from '../faults/support.ts';
import { held, ledgerRead, openTask, reportsRead, serve, warehouseRead, type Served } from '../e2e/support.ts';

/** `ledger:read` is a tool whose tokens nothing revokes before they run out (test/e2e/fixtures/e2e.yaml). */
let served: Served;
let dir: string;
let environment: Record<string, string>;
beforeAll(async () => {
  served = await serve('contain');
  dir = await mkdtemp(path.join(tmpdir(), 'leasehold-contain-'));
  const tokenFile = path.join(dir, 'token');
  await writeFile(tokenFile, await served.estate.mint('operator'), { mode: 0o600 });
  environment = { LEASEHOLD_SERVER: served.estate.httpUrl, LEASEHOLD_TOKEN_FILE: tokenFile };
});
afterAll(async () => {
  await served?.stop();
  await rm(dir, { recursive: true, force: true });
});

const cli = async (...args: string[]) => await runCli(args, environment);
const issue = (taskId: string, access: object) => served.agent.issueCredential({ taskId, ...access });

interface EvidenceLine {
  type: string;
  [member: string]: unknown;
}

async function evidenceIn(file: string): Promise<{ text: string; lines: EvidenceLine[] }> {
  const text = await readFile(file, 'utf8');
  return {
    text,
    lines: text
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as EvidenceLine),
  };
}

test('contain locks, settles, keeps evidence with a digest that the audit has, and tells what happened', async () => {
  const { taskId } = await openTask(served, [reportsRead, warehouseRead]);
  await issue(taskId, reportsRead);
  const login = loginOf(held(await issue(taskId, warehouseRead)).credential);
  const file = path.join(dir, 'first.ndjson');
  const result = await cli('contain', taskId, '--reason', 'INC-7: wrong', '--evidence', file);
  expect(result).toMatchObject({ code: 0 });
  await expect(logIn(login)).rejects.toMatchObject({ code: '28P01' });
  expect(await brokerRows(served.estate, 'SELECT FROM revocations WHERE task_id = $1', [taskId])).toHaveLength(1);
  expect(await refusalOf(issue(taskId, reportsRead))).toMatchObject({ reason: 'TASK_CLOSED' });
  expect(result.stderr).toMatch(/^locked {4}lck_[0-9a-f]{32}: nothing is issued/m);
  expect(result.stderr).toMatch(/^settled {3}every task below is closed/m);
  expect(result.stdout).toMatch(
    /an end-to-end test[\s\S]*locked \(lck_[0-9a-f]+\): "INC-7: wrong"[\s\S]*task closing \(locked\)/,
  );
  expect(result.stdout).toMatch(/^nothing is alive/m);

  const { text, lines } = await evidenceIn(file);
  expect((await stat(file)).mode & 0o777).toBe(0o600);
  const digest = `sha256:${createHash('sha256').update(text).digest('hex')}`;
  expect(result.stderr).toContain(digest);
  const [recorded] = await brokerRows(
    served.estate,
    `SELECT detail FROM audit_events WHERE task_id = $1 AND kind = 'evidence.exported'`,
    [taskId],
  );
  expect(recorded!['detail']).toMatchObject({ digest, task: 1, lease: 2, truncated: false });
  expect(lines[0]).toMatchObject({
    type: 'evidence',
    task: taskId,
    exported_by: 'spiffe://dev.leasehold.test/operator',
  });
  expect(lines.at(-1)).toMatchObject({ type: 'end', task: 1, lease: 2 });
  const kinds = lines.filter(({ type }) => type === 'event').map((line) => line['kind']);
  expect(kinds).toEqual(
    expect.arrayContaining([
      'task.opened',
      'decision.made',
      'lease.issued',
      'lock.created',
      'task.closed',
      'lease.settled',
    ]),
  );
  expect(text).not.toContain('"handle"');
  expect(text).not.toContain(login.password);
});

test('contain again finds the lock, writes another file, and never over one', async () => {
  const { taskId } = await openTask(served, [reportsRead]);
  await issue(taskId, reportsRead);
  const run = async (name: string) =>
    await cli('contain', taskId, '--reason', 'INC-8', '--evidence', path.join(dir, name), '--json');
  const [first, second] = [await run('a.ndjson'), await run('b.ndjson')];
  expect([first.code, second.code]).toEqual([0, 0]);
  const [a, b] = [first, second].map(({ stdout }) => JSON.parse(stdout) as Record<string, unknown>);
  expect(b!['lock_id']).toBe(a!['lock_id']);
  expect(a).toMatchObject({ contained: true, open_tasks: 0, unsettled_leases: 0, still_alive: [] });
  const before = await readFile(path.join(dir, 'a.ndjson'), 'utf8');
  expect((await run('a.ndjson')).code).toBe(exitCodes.usage.code);
  expect(await readFile(path.join(dir, 'a.ndjson'), 'utf8')).toBe(before);
  expect((await readdir(dir)).filter((name) => name.endsWith('.partial'))).toEqual([]);
  expect(await brokerRows(served.estate, `SELECT FROM locks WHERE subject = $1`, [taskId])).toHaveLength(1);
});

test('contain says plainly what is still alive, and exits with 12', async () => {
  const { taskId } = await openTask(served, [ledgerRead, reportsRead]);
  await issue(taskId, reportsRead);
  const { lease } = held(await issue(taskId, ledgerRead));
  const file = path.join(dir, 'alive.ndjson');
  const result = await cli('contain', taskId, '--reason', 'INC-9', '--evidence', file, '--json');
  expect(result.code).toBe(exitCodes.unsettled.code);
  const { still_alive: alive } = JSON.parse(result.stdout) as { still_alive: Record<string, string>[] };
  expect(alive).toMatchObject([{ lease_id: lease.leaseId, tool: 'ledger', because: 'nothing can revoke it' }]);
  const until = Number(lease.expireTime!.seconds) * 1_000;
  expect(Math.abs(Date.parse(alive[0]!['until']!) - until)).toBeLessThan(2_000);
  const told = await cli('contain', taskId, '--reason', 'INC-9', '--evidence', path.join(dir, 'alive2.ndjson'));
  expect(told.stdout).toMatch(/^STILL ALIVE: 1 credentials[\s\S]*ledger:read +nothing can revoke it/m);
});

test('contain holds for the whole tree, and for what somebody opens below it later', async () => {
  const { taskId } = await openTask(served, [reportsRead]);
  const below = `tsk_${'f'.repeat(31)}a`;
  await brokerRows(
    served.estate,
    `INSERT INTO tasks (tenant, task_id, root_task_id, parent_task_id, request_id, request_digest, intent, agent, opener, tools,
       context, opened_at, deadline)
     SELECT tenant, $2, task_id, task_id, gen_random_uuid(), 'd', 'below', agent, opener, tools, context, opened_at, deadline
     FROM tasks WHERE task_id = $1`,
    [taskId, below],
  );
  const file = path.join(dir, 'tree.ndjson');
  expect(await cli('contain', taskId, '--reason', 'INC-10', '--evidence', file)).toMatchObject({ code: 0 });
  expect(await brokerRows(served.estate, 'SELECT state, close_cause FROM tasks WHERE task_id = $1', [below])).toEqual([
    { state: 'closed', close_cause: 'parent_closed' },
  ]);
  const { lines } = await evidenceIn(file);
  expect(lines.filter(({ type }) => type === 'task').map((line) => line['task_id'])).toEqual([taskId, below].sort());
});

test('evidence is for operators and auditors', async () => {
  const { taskId } = await openTask(served, [reportsRead]);
  const drain = async (workload: string) => {
    for await (const { part } of served.estate.client(AuditService, workload).exportEvidence({ taskId })) {
      if (part.case === 'summary') return part.value.tasks;
    }
    return 0;
  };
  expect(await drain('auditor')).toBe(1);
  expect(await refusalOf(drain('orchestrator'))).toMatchObject({ reason: 'ROLE_REQUIRED' });
});

test('lock create, list, get and lift, as people and programs use them', async () => {
  const created = await cli(
    'lock',
    'create',
    '--tool',
    'warehouse:write',
    '--reason',
    'INC-11',
    '--expires',
    '1h',
    '--json',
  );
  expect(created.code).toBe(0);
  const { lock } = JSON.parse(created.stdout) as { lock: Record<string, unknown> };
  expect(lock).toMatchObject({
    state: 'LOCK_STATE_ACTIVE',
    scope: { tool: { tool: 'warehouse', tier: 'TIER_WRITE' } },
  });
  const lockId = lock['lockId'] as string;
  expect((await cli('lock', 'list')).stdout).toMatch(new RegExp(`${lockId} +active +tool warehouse:write`));
  expect((await cli('lock', 'get', lockId)).stdout).toMatch(/^on +tool warehouse:write$[\s\S]*^open tasks +0$/m);
  expect((await cli('lock', 'lift', lockId, '--reason', 'fixed')).stdout).toMatch(/^state +lifted$/m);
  expect((await cli('lock', 'list')).stdout).not.toContain(lockId);
  expect((await cli('lock', 'list', '--ended')).stdout).toContain(lockId);
  expect((await cli('lock', 'create', '--agent', 'a', '--all', '--reason', 'x')).code).toBe(exitCodes.usage.code);
  expect((await cli('lock', 'create', '--agent', 'nobody', '--reason', 'x')).code).toBe(exitCodes.usage.code);
  expect((await cli('lock', 'lift', `lck_${'0'.repeat(32)}`, '--reason', 'x')).code).toBe(exitCodes.notFound.code);
});

test('a broker whose locked agent asks on is not moved by it', async () => {
  const { agent } = callers(served.estate);
  const { taskId } = await openTask(served, [reportsRead]);
  const created = await cli('lock', 'create', '--agent', 'analyst', '--reason', 'INC-12', '--json');
  const { lock } = JSON.parse(created.stdout) as { lock: { lockId: string } };
  const asked = await Promise.all(
    Array.from({ length: 20 }, () =>
      refusalOf(agent.issueCredential({ requestId: crypto.randomUUID(), taskId, ...reportsRead })),
    ),
  );
  expect(new Set(asked.map(({ reason }) => reason))).toEqual(new Set(['LOCKED']));
  expect((await cli('lock', 'lift', lock.lockId, '--reason', 'fixed')).code).toBe(0);
});
