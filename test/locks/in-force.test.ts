import { afterAll, beforeAll, expect, test } from 'vitest';
import { LockService } from '../../src/gen/leasehold/v1/lock_service_pb.js';
import {
  brokerRows,
  callers,
  editConfig,
  eventually,
  openTask,
  refusalOf,
  reportsRead,
  rolesOf,
  secondReplica,
  warehouseRead,
} from '../faults/support.ts';
import { createEstate, startProcess, type BrokerProcess, type TestEstate } from '../support/broker.ts';

/** Three brokers, each a process of its own, on one database, and agents that go on asking whatever they are told. */
let estate: TestEstate;
let replicas: BrokerProcess[];
let ports: number[];
beforeAll(async () => {
  estate = await createEstate('force', { log: { level: 'warn' } });
  await editConfig(estate, ({ server }) =>
    Object.assign(server!, { limits: { callsPerSecond: 1_000_000, burst: 1_000_000 } }),
  );
  const others = [await secondReplica(estate), await secondReplica(estate)];
  ports = [estate.httpPort, ...others.map(({ httpPort }) => httpPort)];
  replicas = await Promise.all([
    startProcess(estate),
    ...others.map(({ configFile }) => startProcess(estate, { configFile })),
  ]);
});
afterAll(async () => {
  await Promise.all((replicas ?? []).map((replica) => replica.stop()));
  await estate?.remove();
});

const locksAt = (port: number) => estate.client(LockService, 'operator', port);

interface Seen {
  what: string;
  begun: number;
  ended: number;
  reason: string | undefined;
}

/** Every way to a credential, on every replica, until it is stopped. */
async function startLoad(taskIds: readonly string[]) {
  const seen: Seen[] = [];
  let stopped = false;
  const forever = async (what: string, call: () => Promise<unknown>) => {
    while (!stopped) {
      const begun = performance.now();
      let reason: string | undefined;
      try {
        await call();
      } catch (error) {
        ({ reason } = await refusalOf(Promise.reject(error as Error)));
      }
      seen.push({ what, begun, ended: performance.now(), reason });
      // A stream that is refused at once, and a refusal that is answered from memory, leave the others room.
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  };
  const loops: Promise<void>[] = [];
  for (const [index, port] of ports.entries()) {
    const { agent, orchestrator } = callers(estate, port);
    const taskId = taskIds[index]!;
    const held = await agent.issueCredential({ requestId: crypto.randomUUID(), taskId, ...reportsRead });
    const again = { requestId: crypto.randomUUID(), taskId, ...reportsRead };
    await agent.issueCredential(again);
    let last = held.credential!.lease!.leaseId;
    loops.push(
      forever('issue', () => agent.issueCredential({ requestId: crypto.randomUUID(), taskId, ...reportsRead })),
      forever('issue', () => agent.issueCredential({ requestId: crypto.randomUUID(), taskId, ...reportsRead })),
      forever('login', () => agent.issueCredential({ requestId: crypto.randomUUID(), taskId, ...warehouseRead })),
      forever('renew', async () => {
        const { credential } = await agent.renewCredential({ requestId: crypto.randomUUID(), leaseId: last });
        last = credential!.lease!.leaseId;
      }),
      forever('retry', () => agent.issueCredential(again)),
      forever('stream', async () => {
        const first = new AbortController();
        const stream = agent.streamCredential({ taskId, ...reportsRead }, { signal: first.signal });
        for await (const _ of stream) break;
        first.abort();
      }),
      forever('open', () =>
        orchestrator.openTask({
          requestId: crypto.randomUUID(),
          intent: 'under load',
          agent: 'analyst',
          tools: [reportsRead],
        }),
      ),
    );
  }
  return {
    seen,
    stop: async () => {
      stopped = true;
      await Promise.all(loops);
    },
  };
}

const handedOut = ['lease.issued', 'lease.renewed', 'lease.reissued', 'task.opened'];

test(
  '0 successes commit after a lock, whatever is asked for, on 3 replicas under load',
  { timeout: 240_000 },
  async () => {
    const tasks = await Promise.all(ports.map((port) => openTask(estate, port)));
    const load = await startLoad(tasks);
    for (let round = 0; round < 6; round++) {
      // In the thick of it: every kind has succeeded lately on this round.
      const from = load.seen.length;
      await eventually(async () => {
        const done = load.seen.slice(from).filter(({ reason }) => reason === undefined);
        expect(new Set(done.map(({ what }) => what)).size).toBe(6);
        return Promise.resolve();
      }, 60_000);
      const at = locksAt(ports[round % ports.length]!);
      const scope = [
        { case: 'agent', value: 'analyst' } as const,
        { case: 'workload', value: 'spiffe://dev.leasehold.test/agent/*' } as const,
        { case: 'all', value: true } as const,
      ][round % 3]!;
      const { lock } = await at.createLock({ requestId: crypto.randomUUID(), scope: { scope }, reason: 'drill' });
      const returned = performance.now();
      const [{ snapshot }] = (await brokerRows(estate, 'SELECT pg_current_snapshot()::text AS snapshot')) as [
        { snapshot: string },
      ];
      const after = load.seen.length;
      // Everything that was under way has come back, and everything has been refused since.
      await eventually(async () => {
        const since = load.seen.slice(after).filter(({ begun }) => begun > returned);
        expect(new Set(since.map(({ what }) => what)).size).toBe(6);
        return Promise.resolve();
      }, 60_000);
      const opens = scope.case === 'workload' ? ['open'] : [];
      const late = load.seen.filter(
        ({ begun, reason, what }) => begun > returned && reason !== 'LOCKED' && !opens.includes(what),
      );
      expect(late).toEqual([]);
      // Committed after the call had returned is what a snapshot of then does not see.
      const kinds = scope.case === 'workload' ? handedOut.filter((kind) => kind !== 'task.opened') : handedOut;
      expect(
        await brokerRows(
          estate,
          `SELECT kind, task_id, lease_id FROM audit_events
         WHERE kind = ANY($1) AND NOT pg_visible_in_snapshot(xmin::text::xid8, $2::pg_snapshot)`,
          [kinds, snapshot],
        ),
      ).toEqual([]);
      expect(
        await brokerRows(
          estate,
          `SELECT kind, task_id, lease_id FROM audit_events
         WHERE kind = ANY($1) AND event_id > (
           SELECT event_id FROM audit_events WHERE kind = 'lock.created' AND detail ->> 'lock' = $2)`,
          [kinds, lock!.lockId],
        ),
      ).toEqual([]);
      // What a target had made for an issue that the lock overtook is gone from it again.
      await eventually(async () => {
        const abandoned = await brokerRows(estate, `SELECT * FROM leases WHERE settle_cause = 'abandoned'`);
        expect(await rolesOf(estate, abandoned)).toEqual([]);
      });
      await locksAt(ports[(round + 1) % ports.length]!).liftLock({ lockId: lock!.lockId, reason: 'drill over' });
    }
    await load.stop();
    expect(new Set(load.seen.map(({ reason }) => reason))).toEqual(new Set([undefined, 'LOCKED']));
  },
);
