import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { controls, frameworks } from '../../src/domain/frameworks.ts';
import { ReportService } from '../../src/gen/leasehold/v1/report_service_pb.js';
import { runCli } from '../cli/run-cli.ts';
import {
  held,
  openTask,
  refusal,
  reportsRead,
  serve,
  sql,
  ticket,
  warehouseRead,
  warehouseWrite,
  type Served,
} from '../e2e/support.ts';

let served: Served;
let dir: string;
let token: string;
beforeAll(async () => {
  served = await serve('report');
  dir = await mkdtemp(path.join(tmpdir(), 'leasehold-report-'));
  token = path.join(dir, 'token');
  await writeFile(token, await served.estate.mint('auditor'), { mode: 0o600 });
  const { taskId } = await openTask(served, [reportsRead, warehouseRead, warehouseWrite]);
  const { lease } = held(await served.agent.issueCredential({ taskId, ...reportsRead }));
  await served.agent.renewCredential({ leaseId: lease.leaseId });
  await refusal(served.agent.issueCredential({ taskId, ...warehouseWrite }));
  await refusal(served.agent.issueCredential({ taskId, ...warehouseWrite }));
  const second = await openTask(served, [warehouseWrite], { context: ticket });
  held(await served.agent.issueCredential({ taskId: second.taskId, ...warehouseWrite }));
  await served.tasks.closeTask({ taskId: second.taskId, wait: true });
});
afterAll(async () => {
  await served?.stop();
  await rm(dir, { recursive: true, force: true });
});

const report = (...args: string[]) =>
  runCli(['report', ...args], { LEASEHOLD_SERVER: served.estate.httpUrl, LEASEHOLD_TOKEN_FILE: token });

test('a report counts what the database holds', async () => {
  const answer = await served.estate.client(ReportService, 'auditor').getReport({});
  const analyst = answer.agents.find(({ agent }) => agent === 'analyst')!;
  expect(analyst).toMatchObject({ tasks: 2n, issued: 2n, renewed: 1n, denied: 2n, review: 'later' });
  expect(answer.denials).toMatchObject([
    { agent: 'analyst', tool: 'warehouse', effect: 'deny', policyRule: 'analyst/write-needs-change-ticket', count: 2n },
  ]);
  expect(answer.tools.find(({ tool, tier }) => tool === 'reports' && tier === reportsRead.tier)).toMatchObject({
    issued: 1n,
    agents: 2n,
  });
  const unused = answer.unusedGrants.map(({ agent, tool }) => `${agent} ${tool}`);
  expect(unused).toContain('analyst ticker');
  expect(unused).not.toContain('analyst reports');
  expect(answer.unused).toBe(BigInt(answer.unusedGrants.length));
  const [leases] = await sql(served.estate.databaseUrl, 'SELECT count(*)::int AS n FROM leasehold.leases');
  expect(answer.leaseOutcomes.reduce((sum, { count }) => sum + Number(count), 0)).toBe(leases!.n);
  expect(answer.leaseOutcomes).toContainEqual(
    expect.objectContaining({ outcome: 'revoked', cause: 'closed', count: 1n }),
  );
  expect(answer.taskOutcomes).toContainEqual(
    expect.objectContaining({ outcome: 'closed', cause: 'requested', count: 1n }),
  );
});

test('a period that begins now holds nothing', async () => {
  const answer = await served.estate.client(ReportService, 'auditor').getReport({ since: timestampFromMs(Date.now()) });
  expect({ denials: answer.denials, leases: answer.leaseOutcomes }).toEqual({ denials: [], leases: [] });
  expect(answer.unused).toBe(answer.grants);
});

test('people get Markdown, spreadsheets get CSV without formulas', async () => {
  const markdown = await report('--since', '1d');
  expect(markdown.code).toBe(0);
  expect(markdown.stdout).toContain('## Granted and not used');
  expect(markdown.stdout).toMatch(/\| analyst \| data-platform@leasehold\.test \|/);
  expect(markdown.stdout).toContain('| ASI03 |');
  const csv = await report('--since', '1d', '--format', 'csv');
  expect(csv.stdout.split('\r\n')[0]).toBe('part,row,column,value');
  expect(csv.stdout).toContain('agents,1,agent,analyst');
  expect(csv.stdout.split('\r\n').filter((line) => /,[=+@]/.test(line))).toEqual([]);
});

test('the guide explains every item of a framework that a report names, and every edition', async () => {
  const guide = await readFile(path.join(import.meta.dirname, '..', '..', 'docs', 'governance.md'), 'utf8');
  for (const { item } of controls) expect(guide).toContain(item);
  for (const [edition, url] of Object.entries(frameworks)) {
    expect(guide).toContain(edition);
    expect(guide).toContain(url);
  }
});
