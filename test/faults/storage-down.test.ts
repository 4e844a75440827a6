import { randomBytes } from 'node:crypto';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { freePort, startEmbeddedPostgres, type EmbeddedPostgres } from '../../src/dev/postgres.ts';
import type { FaultPoint } from '../../src/domain/telemetry.ts';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import { asSuperuser } from '../support/postgres.ts';
import { startLoad } from './load.ts';
import {
  brokerRows,
  callers,
  editConfig,
  eventually,
  expectSettled,
  leasesOf,
  loginOf,
  openTask,
  prepareBrokerDatabase,
  ordersSeenBy,
  refusalOf,
  reportsRead,
  retrying,
  rolesOf,
  warehouseRead,
} from './support.ts';

/** Fault 12. The broker's database is a server of its own here, so that it can fail while the target does not. */
let dir: string;
let port: number;
const password = randomBytes(12).toString('hex');
let server: EmbeddedPostgres;
let estate: TestEstate;
let broker: Awaited<ReturnType<typeof startInProcess>>;
let onReached: (point: FaultPoint) => void = () => undefined;

const start = async () => {
  server = await startEmbeddedPostgres({ dataDir: path.join(dir, 'pg'), password, port, settings: ['fsync=off'] });
};
/** Immediate shutdown: no checkpoint, no goodbye; the next start recovers from the log. */
const crash = async () => {
  process.kill(server.pid(), 'SIGQUIT');
  await server.stop();
};

beforeAll(async () => {
  dir = await mkdtemp(path.join(tmpdir(), 'leasehold-storage-'));
  await chmod(dir, 0o755);
  port = await freePort();
  await start();
  const urlFor = (user: string, database: string) => `postgres://${user}:${password}@127.0.0.1:${port}/${database}`;
  await prepareBrokerDatabase(urlFor, password);
  const made = await createEstate('storage');
  estate = { ...made, databaseUrl: urlFor('postgres', 'broker') };
  await writeFile(path.join(made.dir, 'database-url'), urlFor('app', 'broker'), { mode: 0o600 });
  await editConfig(made, ({ targets }) => Object.assign(targets!['warehouse']!, { issueTimeout: '1s' }));
  broker = await startInProcess(made, { reached: (point) => onReached(point) });
});
afterAll(async () => {
  await broker?.stop();
  await server?.stop();
  await estate?.remove();
  await rm(dir, { recursive: true, force: true });
});

const readyz = async () => (await fetch(`${estate.httpUrl}/readyz`)).status;

test.for([
  ['is stopped and started', () => server.stop(), start],
  ['is shut down at once and recovers', crash, start],
  ['loses a process by SIGKILL and recovers', killBackend, () => Promise.resolve()],
] as const)(
  'under load the broker’s database %s: nothing acknowledged is lost, and it serves again by itself',
  { timeout: 90_000 },
  async ([name, fail, mend]) => {
    const { agent, orchestrator } = callers(estate);
    const taskId = await openTask(estate);
    const { credential } = await agent.issueCredential({ taskId, ...warehouseRead });
    const load = startLoad(estate, taskId);
    await eventually(async () => expect(load.acknowledged.length).toBeGreaterThan(50));

    await fail();
    if (!name.includes('SIGKILL')) {
      const down = { code: 'Unavailable', reason: 'STORAGE_UNAVAILABLE' };
      const before = load.acknowledged.length;
      const roles = await warehouseLogins();
      for (const access of [reportsRead, warehouseRead]) {
        expect(await refusalOf(agent.issueCredential({ taskId, ...access }))).toMatchObject(down);
      }
      expect(await refusalOf(agent.renewCredential({ leaseId: credential!.lease!.leaseId }))).toMatchObject(down);
      expect(
        await refusalOf(orchestrator.openTask({ intent: 'no', agent: 'analyst', tools: [reportsRead] })),
      ).toMatchObject(down);
      expect(await refusalOf(orchestrator.closeTask({ taskId }))).toMatchObject(down);
      expect(await refusalOf(orchestrator.getTask({ taskId }))).toMatchObject(down);
      await eventually(async () => expect(await readyz()).toBe(503));
      expect(load.acknowledged.length - before).toBeLessThanOrEqual(6);
      expect(await warehouseLogins()).toEqual(roles);
    } else {
      await eventually(async () => expect(load.refused.length).toBeGreaterThan(0));
    }
    await mend();

    await retrying(() => agent.issueCredential({ taskId, ...reportsRead }));
    const mark = load.acknowledged.length;
    await eventually(async () => expect(load.acknowledged.length).toBeGreaterThan(mark + 20));
    await load.stop();
    await eventually(async () => expect(await readyz()).toBe(200));
    for (const { code, reason } of load.refused)
      expect({ code, reason }).toEqual({ code: 'Unavailable', reason: 'STORAGE_UNAVAILABLE' });

    const recorded = new Set((await leasesOf(estate, taskId)).map((lease) => lease['lease_id']));
    expect(load.acknowledged.filter((leaseId) => !recorded.has(leaseId))).toEqual([]);
    // Whether or not the commit of an unanswered call went through, its retry finds or makes one lease.
    const [unanswered] = load.refused;
    const retried = await agent.issueCredential({ requestId: unanswered!.requestId, taskId, ...reportsRead });
    const byRequest = await brokerRows(estate, 'SELECT lease_id FROM leases WHERE request_id = $1', [
      unanswered!.requestId,
    ]);
    expect(byRequest).toEqual([{ lease_id: retried.credential!.lease!.leaseId }]);

    expect(await ordersSeenBy(loginOf(credential))).toBe(3);
    await orchestrator.closeTask({ taskId });
    await expectSettled(estate, taskId, 30_000);
  },
);

test(
  'the broker’s database dies while a login is being made: nobody receives it, and it is gone when the database is back',
  { timeout: 60_000 },
  async () => {
    const { agent, orchestrator } = callers(estate);
    const taskId = await openTask(estate);
    const request = { requestId: crypto.randomUUID(), taskId, ...warehouseRead };
    let dying: Promise<void> | undefined;
    onReached = (point) => {
      if (point === 'issue.credential-made') dying ??= crash();
    };
    expect(await refusalOf(agent.issueCredential(request))).toMatchObject({
      code: 'Unavailable',
      reason: 'STORAGE_UNAVAILABLE',
    });
    onReached = () => undefined;
    await dying;
    await start();

    const { credential } = await retrying(() => agent.issueCredential(request));
    expect(await ordersSeenBy(loginOf(credential))).toBe(3);
    const leases = await leasesOf(estate, taskId);
    await eventually(async () => {
      const lost = (await leasesOf(estate, taskId)).filter((lease) => lease['lease_id'] !== credential!.lease!.leaseId);
      for (const lease of lost) expect(lease).toMatchObject({ state: 'settled', outcome: 'revoked' });
    });
    expect(await rolesOf(estate, leases)).toEqual([loginOf(credential).username]);
    await orchestrator.closeTask({ taskId });
    await expectSettled(estate, taskId);
  },
);

async function killBackend(): Promise<void> {
  const [backend] = await brokerRows(
    estate,
    `SELECT pid FROM pg_stat_activity WHERE application_name = 'leasehold' AND query LIKE '%WITH input AS%' LIMIT 1`,
  );
  process.kill(backend!['pid'] as number, 'SIGKILL');
}

/** Logins that the broker's own login at this target made, whatever the broker knows of them. */
async function warehouseLogins(): Promise<unknown[]> {
  return await asSuperuser(estate.targetUrl, async (client) => {
    const { rows } = await client.query(
      `SELECT m.roleid FROM pg_auth_members m JOIN pg_roles a ON a.oid = m.member JOIN pg_roles r ON r.oid = m.roleid
       WHERE a.rolname = $1 AND r.rolname LIKE 'lh\\_%' ORDER BY m.roleid`,
      [estate.target.user],
    );
    return rows;
  });
}
