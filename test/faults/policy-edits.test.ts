import { readFile, rm, writeFile } from 'node:fs/promises';
import { execFile } from 'node:child_process';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import { brokerRows, callers, eventually, openTask, refusalOf, reportsRead } from './support.ts';

/** Fault 20. */
let estate: TestEstate;
let broker: Awaited<ReturnType<typeof startInProcess>>;
let running: string;
const original: Record<string, string> = {};
const operator = () => estate.client(AdminService, 'operator');
beforeAll(async () => {
  estate = await createEstate('policy');
  broker = await startInProcess(estate);
  for (const file of ['agents.yaml', 'analyst.yaml', 'tools.yaml']) {
    original[file] = await readFile(path.join(estate.policyDir, file), 'utf8');
  }
  running = (await operator().getStatus({})).policyRevision;
});
afterAll(async () => {
  await broker?.stop();
  await estate?.remove();
});
const write = (file: string, text: string) => writeFile(path.join(estate.policyDir, file), text);
afterEach(async () => {
  for (const [file, text] of Object.entries(original)) await write(file, text);
  await eventually(async () => {
    expect(await operator().getStatus({})).toMatchObject({ policyError: '', policyRevision: running });
  });
});

/** The position of the mistake is that of the text `at` in the edited file. */
const mistakes: [what: string, file: string, edit: (text: string) => string, at: string][] = [
  ['YAML that cannot be parsed', 'analyst.yaml', (text) => text.replace('  rules:', '  rules: ['), ''],
  ['a field that does not exist', 'analyst.yaml', (text) => text.replace('effect: allow', 'efect: allow'), 'efect'],
  [
    'a tool that does not exist',
    'analyst.yaml',
    (text) => text.replace('[reports, warehouse]', '[reports, warehose]'),
    'warehose',
  ],
  [
    'a condition with a type error',
    'analyst.yaml',
    (text) => text.replace('task.age < 3600', 'task.age < "an hour"'),
    '',
  ],
  [
    'a target that is not configured',
    'tools.yaml',
    (text) => text.replace('target: warehouse', 'target: warehouze'),
    'warehouze',
  ],
  [
    'bounds the wrong way round',
    'tools.yaml',
    (text) => text.replace('min: 1m, default: 5m, max: 30m', 'min: 7m, default: 5m, max: 30m'),
    '',
  ],
  [
    'a trust domain that nobody vouches for',
    'agents.yaml',
    (text) => text.replace('[spiffe://dev.leasehold.test/', '[spiffe://evil.test/'),
    '',
  ],
  ['the same agent twice', 'agents.yaml', (text) => `${text}---\n${text}`, ''],
  ['an alias bomb', 'agents.yaml', () => bomb(), ''],
];

function bomb(): string {
  const rows = Array.from(
    { length: 12 },
    (_, index) => `a${index + 1}: &a${index + 1} [${`*a${index}, `.repeat(10)}x]`,
  );
  return `a0: &a0 [x]\n${rows.join('\n')}\n`;
}

test.for(mistakes)(
  '%s: the running revision stays, and the error names file, line and column',
  async ([, file, edit, at]) => {
    const text = edit(original[file]!);
    expect(text).not.toBe(original[file]);
    await write(file, text);
    const status = await eventuallyRefused();
    const positions = [...status.policyError.matchAll(/([^\s:]+\.yaml):(\d+):(\d+)/g)];
    expect(positions, status.policyError).not.toEqual([]);
    const pointedAt = positions.map(([, name, line, column]) => {
      expect(path.basename(name!)).toBe(file);
      return text.split('\n')[Number(line) - 1]!.slice(Number(column) - 1);
    });
    expect(pointedAt, status.policyError).toContainEqual(expect.stringContaining(at));
    expect(status.policyRevision).toBe(running);
    expect(status.ready).toBe(true);
    const taskId = await openTask(estate);
    await callers(estate).agent.issueCredential({ taskId, ...reportsRead });
  },
);

async function eventuallyRefused() {
  let status = await operator().getStatus({});
  await eventually(async () => {
    status = await operator().getStatus({});
    expect(status.policyError).not.toBe('');
  });
  return status;
}

test('a missing file is refused too when other documents need it', async () => {
  await rm(path.join(estate.policyDir, 'agents.yaml'));
  const status = await eventuallyRefused();
  expect(status.policyError).toMatch(/analyst\.yaml:\d+:\d+/);
  expect(status.policyRevision).toBe(running);
});

test('a good edit after a bad one counts, for the next decision and by its digest', async () => {
  await write('analyst.yaml', original['analyst.yaml']!.replace('effect: allow', 'effect: perhaps'));
  await eventuallyRefused();
  await write('analyst.yaml', original['analyst.yaml']!.replace('tools: [reports, warehouse]', 'tools: [warehouse]'));
  let revision = running;
  await eventually(async () => {
    const status = await operator().getStatus({});
    expect(status.policyError).toBe('');
    expect(status.policyRevision).not.toBe(running);
    revision = status.policyRevision;
  });
  const { agent, orchestrator } = callers(estate);
  const { task, policyRevision } = await orchestrator.openTask({
    intent: 'edit',
    agent: 'analyst',
    tools: [reportsRead, { tool: 'warehouse', tier: Tier.READ }],
  });
  expect(policyRevision).toBe(revision);
  const refusal = await refusalOf(agent.issueCredential({ taskId: task!.taskId, ...reportsRead }));
  expect(refusal).toMatchObject({ code: 'PermissionDenied', reason: 'POLICY_DENIED' });
  await agent.issueCredential({ taskId: task!.taskId, tool: 'warehouse', tier: Tier.READ });
  expect(await brokerRows(estate, 'SELECT digest FROM policy_revisions WHERE digest = $1', [revision])).toHaveLength(1);
});

test('a tool that is taken out of policy gets no renewal, and its lease is settled all the same', async () => {
  const { agent, orchestrator } = callers(estate);
  const taskId = await openTask(estate);
  const { credential } = await agent.issueCredential({ taskId, tool: 'warehouse', tier: Tier.READ });
  const [reports] = original['tools.yaml']!.split('---');
  await write('tools.yaml', reports!);
  await write(
    'analyst.yaml',
    original['analyst.yaml']!.replace('[reports, warehouse]', '[reports]').replace(
      /\n {4}# `task.context[\s\S]*/,
      '\n',
    ),
  );
  await eventually(async () => {
    const status = await operator().getStatus({});
    expect([status.policyError, status.policyRevision === running]).toEqual(['', false]);
  });
  const refusal = await refusalOf(agent.renewCredential({ leaseId: credential!.lease!.leaseId }));
  expect(refusal).toMatchObject({ code: 'FailedPrecondition', reason: 'RENEWAL_REFUSED' });
  const { summary } = await orchestrator.closeTask({ taskId, wait: true });
  expect(summary).toMatchObject({ unsettled: 0, revoked: 1 });
});

/** The command line as a supervisor sees it. */
async function leasehold(...args: string[]): Promise<{ code: number; stderr: string; stdout: string }> {
  return await new Promise((resolve) => {
    const main = path.join(import.meta.dirname, '..', '..', 'src', 'main.ts');
    execFile(process.execPath, [main, ...args], { timeout: 60_000 }, (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    );
  });
}

test.for(['config check', 'serve'])(
  'leasehold %s refuses a malformed configuration with exit code 9, and says where',
  async (command) => {
    const text = await readFile(estate.configFile, 'utf8');
    const file = path.join(estate.dir, 'bad.yaml');
    await writeFile(file, text.replace('sslmode: disable', 'sslmode: perhaps'));
    const { code, stderr } = await leasehold(...command.split(' '), '--config', file);
    expect(code).toBe(9);
    expect(stderr).toMatch(/bad\.yaml:\d+:\d+.*sslmode/);
    expect(stderr).not.toContain(estate.target.password);
  },
);
