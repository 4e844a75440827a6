import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { runCli } from '../cli/run-cli.ts';
import { held, openTask, parties, reportsRead, refusal, sql, warehouseRead, type Parties } from '../e2e/support.ts';
import { startInProcess } from '../support/broker.ts';
import { databaseEstate } from './support.ts';

let estate: Awaited<ReturnType<typeof databaseEstate>>;
let broker: Awaited<ReturnType<typeof startInProcess>>;
let here: Parties;
let dir: string;
let environment: Record<string, string>;

beforeAll(async () => {
  estate = await databaseEstate('policycli');
  broker = await startInProcess(estate);
  here = parties(estate);
  dir = await mkdtemp(path.join(tmpdir(), 'leasehold-policycli-'));
  await cp(estate.policyDir, path.join(dir, 'policies'), { recursive: true });
  const token = path.join(dir, 'token');
  await writeFile(token, await estate.mint('operator'), { mode: 0o600 });
  environment = { LEASEHOLD_SERVER: estate.httpUrl, LEASEHOLD_TOKEN_FILE: token };
});
afterAll(async () => {
  await broker?.stop(500);
  await estate?.remove();
  await rm(dir, { recursive: true, force: true });
});

const cli = (...args: string[]) => runCli(['policy', ...args], environment);
const policies = () => path.join(dir, 'policies');
const running = async () => (await here.admin.getStatus({})).policyRevision;

async function edit(change: (text: string) => string): Promise<void> {
  const file = path.join(policies(), 'analyst.yaml');
  await writeFile(file, change(await readFile(file, 'utf8')));
}

test('a policy is looked at, applied, changed and rolled back by the program alone, and open credentials follow', async () => {
  const dry = await cli('apply', policies(), '--dry-run');
  expect(dry).toMatchObject({ code: 0, stderr: '' });
  expect(dry.stdout).toContain('+ Policy analyst, rule read');
  expect(dry.stdout).toMatch(/revision sha256:[0-9a-f]{64} would run; nothing was changed/);
  expect(await sql(estate.databaseUrl, 'SELECT FROM leasehold.policy_activations')).toEqual([]);

  const applied = await cli('apply', policies(), '--message', 'the first');
  expect(applied).toMatchObject({ code: 0, stderr: '' });
  const [first] = /sha256:[0-9a-f]{64}/.exec(applied.stdout)!;
  expect(dry.stdout).toContain(first);
  expect(await running()).toBe(first);
  const { taskId } = await openTask(here, [reportsRead, warehouseRead]);
  const { lease } = held(await here.agent.issueCredential({ taskId, ...reportsRead }));
  held(await here.agent.issueCredential({ taskId, ...warehouseRead }));

  await edit((text) => text.replace('tools: [reports, warehouse]', 'tools: [warehouse]'));
  const preview = await cli('apply', policies(), '--dry-run', '--reevaluate');
  expect(preview.stdout).toContain('1 of 2 open credentials would be ended');
  // Somebody else's change in between would be overwritten: the digest that was looked at says so.
  const stale = await cli('apply', policies(), '--expect', `sha256:${'0'.repeat(64)}`);
  expect(stale.code).toBe(6);
  expect(stale.stderr).toContain('POLICY_CHANGED');
  expect(await running()).toBe(first);
  const second = await cli('apply', policies(), '--expect', first!, '--reevaluate', '--json');
  expect(second.code).toBe(0);
  const { revision } = JSON.parse(second.stdout) as { revision: { digest: string } };
  expect(await running()).toBe(revision.digest);
  await expect
    .poll(
      async () =>
        await sql(estate.databaseUrl, 'SELECT state, settle_cause FROM leasehold.leases WHERE lease_id = $1', [
          lease.leaseId,
        ]),
      { timeout: 10_000 },
    )
    .toEqual([{ state: 'settled', settle_cause: 'policy' }]);
  expect(await refusal(here.agent.issueCredential({ taskId, ...reportsRead }))).toMatchObject({
    reason: 'POLICY_DENIED',
  });

  const back = await cli('rollback', first!.slice(0, 'sha256:'.length + 12), '--message', 'reports are needed');
  expect(back).toMatchObject({ code: 0, stderr: '' });
  expect(back.stdout).toContain('~ Policy analyst, rule read');
  expect(back.stdout).toContain(`revision ${first} runs`);
  expect(await running()).toBe(first);
  held(await here.agent.issueCredential({ taskId, ...reportsRead }));
  const list = await cli('list');
  expect(list.stdout).toContain('the first');
  expect(list.stdout).toContain('reports are needed');
  expect((await cli('rollback', 'sha256:00000000')).code).toBe(5);
});

test('a policy with a mistake is not applied, and says where the mistake is in the files at hand', async () => {
  const before = await running();
  await edit((text) => text.replace('tools: [warehouse]', 'tools: [warehuose]'));
  const refused = await cli('apply', policies());
  expect(refused.code).toBe(9);
  expect(refused.stderr).toMatch(/policies\/analyst\.yaml:\d+:\d+: .*there is no tool "warehuose"/);
  expect(await running()).toBe(before);
});
