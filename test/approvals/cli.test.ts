import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { runCli, startCli } from '../cli/run-cli.ts';
import { editPolicy } from '../e2e/support.ts';
import { askFor, look, openTask, people, refund, serve, type Served } from './support.ts';

let served: Served;
let dir: string;
beforeAll(async () => {
  served = await serve('approvecli');
  dir = await mkdtemp(path.join(tmpdir(), 'leasehold-approve-'));
});
afterAll(async () => {
  await served.stop();
  await rm(dir, { recursive: true, force: true });
});

/** The program as one of the people would run it. */
async function environment(workload: string): Promise<Record<string, string>> {
  const file = path.join(dir, workload.replace('/', '-'));
  await writeFile(file, await served.estate.mint(workload), { mode: 0o600 });
  return { LEASEHOLD_SERVER: served.estate.httpUrl, LEASEHOLD_TOKEN_FILE: file };
}

const cli = async (workload: string, ...args: string[]) =>
  await runCli(['approval', ...args], await environment(workload));

test('a person lists what waits, looks, approves, and the agent that waits gets its credential', async () => {
  const taskId = await openTask(served);
  const { name } = await askFor(served, { taskId, ...look, justification: 'the month end' });
  const waiting = startCli(['approval', 'watch', name], await environment('agent/analyst'));
  await expect.poll(() => waiting.printed(), { timeout: 20_000 }).toContain('pending');

  const listed = await cli(people.owner, 'list', '--state', 'pending', '--task', taskId);
  expect(listed).toMatchObject({ code: 0, stderr: '' });
  expect(listed.stdout).toContain(name);
  const shown = await cli(people.owner, 'get', name);
  expect(shown.stdout).toMatch(/use +vault-door:read/);
  expect(shown.stdout).toContain('the month end');
  expect(shown.stdout).toContain('0 of 1 from door-owners');
  const approved = await cli(people.owner, 'approve', name, '--comment', 'fine', '--json');
  expect(approved.code).toBe(0);
  expect(JSON.parse(approved.stdout)).toMatchObject({
    approval: { approvalId: name, state: 'APPROVAL_STATE_APPROVED', votes: [{ comment: 'fine' }] },
  });

  const watched = await waiting.done;
  expect(watched).toMatchObject({ code: 0, stderr: '' });
  expect(watched.stdout).toContain('approved  1/1 approvers');
  const issued = await runCli(
    ['credential', 'issue', taskId, '--tool', 'vault-door:read', '--approval', name, '--json'],
    await environment('agent/analyst'),
  );
  expect(issued.code).toBe(0);
});

test('a refusal of people is exit code 6, and so is deciding what one may not', async () => {
  const taskId = await openTask(served);
  const { name } = await askFor(served, { taskId, ...refund });
  const denied = await cli(people.clerk, 'deny', name, '--comment', 'not today');
  expect(denied.stdout).toMatch(/state +denied/);
  const watched = await cli('agent/analyst', 'watch', name);
  expect(watched.code).toBe(6);
  expect(watched.stderr).toContain('the approval is denied');
  expect((await cli(people.clerk, 'approve', name)).code).toBe(6);
  expect((await cli(people.guard, 'approve', name)).code).toBe(5);
});

test('a request names the exact arguments of each use, after the tool that they belong to', async () => {
  const taskId = await openTask(served);
  const use = ['--tool', 'shop:write', '--argument'];
  const asked = await cli('orchestrator', 'request', taskId, ...use, 'amount=40', ...use, 'amount=90', '--json');
  expect(asked).toMatchObject({ code: 0, stderr: '' });
  const { results } = JSON.parse(asked.stdout) as {
    results: { approval: { arguments: object; approvalId: string } }[];
  };
  expect(results.map(({ approval }) => approval.arguments)).toEqual([{ amount: 40 }, { amount: 90 }]);
  // What was asked for is what the agent then finds, and nothing else.
  const name = results[1]!.approval.approvalId;
  expect((await cli(people.clerk, 'approve', name)).code).toBe(0);
  await served.agent.issueCredential({ taskId, ...refund, arguments: { amount: 90 } });

  const early = await cli('orchestrator', 'request', taskId, '--argument', 'amount=1', '--tool', 'shop:write');
  expect(early.code).toBe(2);
  expect(early.stderr).toContain('It comes after the --tool that it belongs to.');
});

test('a request names the agent of the task below that will make a use, and shows who holds it', async () => {
  await editPolicy(served, 'agents.yaml', (text) =>
    text.replace(/^ {2}workloads: \[.*\/analyst\]$/m, '$&\n  delegation: { to: [twin] }'),
  );
  const taskId = await openTask(served);
  const use = ['--tool', 'vault-door:read'];
  const asked = await cli(
    'orchestrator',
    'request',
    taskId,
    ...use,
    '--agent',
    'twin',
    '--context',
    'env=test',
    '--json',
  );
  expect(asked).toMatchObject({ code: 0, stderr: '' });
  const { results } = JSON.parse(asked.stdout) as { results: { approval: { approvalId: string } }[] };
  expect(results).toMatchObject([
    { approval: { kind: 'APPROVAL_KIND_FOR_CHILD', agent: 'twin', parentAgent: 'analyst' } },
  ]);
  const shown = await cli(people.owner, 'get', results[0]!.approval.approvalId);
  expect(shown.stdout).toMatch(/agent +twin/);
  expect(shown.stdout).toContain('the task above, of agent analyst');
  const early = await cli('orchestrator', 'request', taskId, '--agent', 'twin', ...use);
  expect(early).toMatchObject({ code: 2, stderr: expect.stringContaining('It comes after the --tool') as string });
  const twice = await cli('orchestrator', 'request', taskId, ...use, '--agent', 'twin', '--agent', 'twin');
  expect(twice.code).toBe(2);
  const alone = await cli('orchestrator', 'request', taskId, ...use, '--context', 'env=test');
  expect(alone).toMatchObject({ code: 2, stderr: expect.stringContaining('actions[0].context') as string });
});

test('an orchestrator asks for all at once; two people break glass', async () => {
  const taskId = await openTask(served);
  const asked = await cli('orchestrator', 'request', taskId, '--tool', 'vault-door:write', '--tool', 'shop:execute');
  expect(asked.code).toBe(0);
  expect(asked.stdout).toMatch(/vault-door +write +needs_approval +apr_/);
  expect(asked.stdout).toMatch(/shop +execute +deny +- /);

  const broken = await cli(
    people.guard,
    'break-glass',
    taskId,
    '--tool',
    'shop:execute',
    '--reason',
    'payments are down',
  );
  expect(broken.code).toBe(0);
  expect(broken.stdout).toContain('BREAK-GLASS');
  const name = /leasehold approval approve (apr_[0-9a-f]{32})/.exec(broken.stdout)![1]!;
  expect((await cli(people.captain, 'approve', name)).stdout).toMatch(/state +approved/);
  const short = await cli(people.guard, 'break-glass', taskId, '--tool', 'shop:execute', '--reason', 'why not');
  expect(short.code).toBe(2);
});
