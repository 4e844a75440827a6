import { randomBytes } from 'node:crypto';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startEmbeddedPostgres, type EmbeddedPostgres } from '../../src/dev/postgres.ts';
import { RevocationService } from '../../src/gen/leasehold/v1/revocation_service_pb.js';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import { asSuperuser } from '../support/postgres.ts';
import { startProxy, type TestProxy } from '../support/proxy.ts';
import { copyCluster, startStandby, type Standby } from '../support/standby.ts';
import { startLoad } from './load.ts';
import {
  brokerRows,
  callers,
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
  warehouseRead,
} from './support.ts';

/** Fault 12, the failover: a primary with a synchronous standby, behind an address that moves. */
let dir: string;
const password = randomBytes(12).toString('hex');
let primary: EmbeddedPostgres;
let standby: Standby;
let address: TestProxy;
let estate: TestEstate;
let broker: Awaited<ReturnType<typeof startInProcess>>;

const urlOf = (port: number, user = 'postgres', database = 'broker') =>
  `postgres://${user}:${password}@127.0.0.1:${port}/${database}`;

beforeAll(async () => {
  dir = await mkdtemp(path.join(tmpdir(), 'leasehold-failover-'));
  await chmod(dir, 0o755);
  const dataDir = path.join(dir, 'primary');
  const start = () => startEmbeddedPostgres({ dataDir, password, settings: ['fsync=off'] });
  primary = await start();
  await prepareBrokerDatabase((user, database) => urlOf(primary.port, user, database), password);
  await primary.stop();
  await copyCluster(dataDir, path.join(dir, 'standby'));
  primary = await start();
  standby = await startStandby(path.join(dir, 'standby'), { port: primary.port, password });
  await asSuperuser(urlOf(primary.port), async (client) => {
    await client.query(`ALTER SYSTEM SET synchronous_standby_names = 'standby'`);
    await client.query('SELECT pg_reload_conf()');
  });
  await eventually(async () => {
    const replicas = await asSuperuser(urlOf(primary.port), (client) =>
      client.query('SELECT sync_state FROM pg_stat_replication'),
    );
    expect(replicas.rows).toEqual([{ sync_state: 'sync' }]);
  });
  address = await startProxy('127.0.0.1', primary.port);
  const made = await createEstate('failover');
  estate = { ...made, databaseUrl: urlOf(standby.port) };
  await writeFile(path.join(made.dir, 'database-url'), urlOf(address.port, 'app'), { mode: 0o600 });
  broker = await startInProcess(made);
}, 120_000);
afterAll(async () => {
  await broker?.stop();
  await address?.close();
  await standby?.stop();
  await primary?.stop();
  await estate?.remove();
  await rm(dir, { recursive: true, force: true });
});

const readyz = async () => (await fetch(`${estate.httpUrl}/readyz`)).status;

test(
  'the primary dies under load and its standby takes over: nothing acknowledged is lost, and the broker serves again without a restart',
  { timeout: 120_000 },
  async () => {
    const { agent, orchestrator } = callers(estate);
    const taskId = await openTask(estate);
    const { credential } = await agent.issueCredential({ taskId, ...warehouseRead });
    const closedBefore = await openTask(estate);
    await agent.issueCredential({ taskId: closedBefore, ...reportsRead });
    await orchestrator.closeTask({ taskId: closedBefore });
    const load = startLoad(estate, taskId);
    await eventually(async () => expect(load.acknowledged.length).toBeGreaterThan(50));

    process.kill(primary.pid(), 'SIGQUIT');
    await primary.stop();
    // The address leads to the standby before anybody has promoted it: what is connected to now can be read and not written.
    address.forwardTo(standby.port);
    await eventually(async () => expect(await readyz()).toBe(503));
    const before = load.acknowledged.length;
    const down = { code: 'Unavailable', reason: 'STORAGE_UNAVAILABLE' };
    expect(await refusalOf(agent.issueCredential({ taskId, ...reportsRead }))).toMatchObject(down);
    expect(await refusalOf(orchestrator.getTask({ taskId }))).toMatchObject(down);
    expect(load.acknowledged).toHaveLength(before);

    await asSuperuser(urlOf(standby.port), (client) => client.query('SELECT pg_promote()'));
    await retrying(() => agent.issueCredential({ taskId, ...reportsRead }));
    await eventually(async () => expect(load.acknowledged.length).toBeGreaterThan(before + 20));
    await load.stop();
    await eventually(async () => expect(await readyz()).toBe(200));
    for (const { code, reason } of load.refused) expect({ code, reason }).toEqual(down);

    const recorded = new Set((await leasesOf(estate, taskId)).map((lease) => lease['lease_id']));
    expect(load.acknowledged.filter((leaseId) => !recorded.has(leaseId))).toEqual([]);
    const [unanswered] = load.refused;
    const { requestId } = unanswered!;
    const retried = await agent.issueCredential({ requestId, taskId, ...reportsRead });
    expect(await brokerRows(estate, 'SELECT lease_id FROM leases WHERE request_id = $1', [requestId])).toEqual([
      { lease_id: retried.credential!.lease!.leaseId },
    ]);

    expect(await ordersSeenBy(loginOf(credential))).toBe(3);
    await orchestrator.closeTask({ taskId });
    await expectSettled(estate, taskId, 30_000);
    expect(await fedTo(closedBefore, taskId)).toEqual([closedBefore, taskId]);
  },
);

/** What a follower that begins anew is told of these tasks. */
async function fedTo(...tasks: string[]): Promise<string[]> {
  const feed = estate.client(RevocationService, 'tool/reports');
  const told: string[] = [];
  for await (const { revocations, current } of feed.watchRevocations({}, { timeoutMs: 10_000 })) {
    told.push(...revocations.flatMap(({ subject }) => (tasks.includes(subject.value!) ? [subject.value!] : [])));
    if (current) break;
  }
  return told;
}
