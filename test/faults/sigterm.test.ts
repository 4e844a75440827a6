import { spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { createEstate, startProcess, type TestEstate } from '../support/broker.ts';
import { startProxy } from '../support/proxy.ts';
import { RevocationService } from '../../src/gen/leasehold/v1/revocation_service_pb.js';
import {
  brokerRows,
  callers,
  editConfig,
  eventually,
  expectSettled,
  leasesOf,
  openTask,
  refusalOf,
  reportsRead,
  warehouseRead,
  type Refusal,
} from './support.ts';

/** Fault 22. */
let estate: TestEstate;
afterEach(() => estate.remove());
const grace = 8_000;

test(
  'SIGTERM under load: calls finish or fail cleanly, streams are told, nothing acknowledged is lost',
  { timeout: 60_000 },
  async () => {
    estate = await createEstate('sigterm');
    await editConfig(estate, ({ server }) => Object.assign(server!, { shutdownGrace: '8s' }));
    const broker = await startProcess(estate);
    const { agent, orchestrator } = callers(estate);
    const taskId = await openTask(estate);

    const streams = [
      orchestrator.watchTask({ taskId }),
      agent.streamCredential({ taskId, ...reportsRead }),
      agent.streamCredential({ taskId, ...warehouseRead }),
      estate.client(RevocationService, 'tool/reports').watchRevocations({}),
    ].map((stream) => follow(stream));
    await eventually(async () =>
      expect(streams.map(({ messages }) => messages() > 0)).toEqual([true, true, true, true]),
    );

    const acknowledged: string[] = [];
    const refused: Refusal[] = [];
    let stopped = false;
    const load = Array.from({ length: 8 }, async (_, index) => {
      const access = index < 6 ? reportsRead : warehouseRead;
      while (!stopped) {
        const call = agent.issueCredential({ taskId, ...access });
        await call.then(
          ({ credential }) => void acknowledged.push(credential!.lease!.leaseId),
          async () => {
            refused.push(await refusalOf(call));
            await new Promise((resolve) => setTimeout(resolve, 10));
          },
        );
      }
    });
    await eventually(async () => expect(acknowledged.length).toBeGreaterThan(50));

    const began = performance.now();
    broker.child.kill('SIGTERM');
    expect(await broker.exited).toEqual({ code: 0, signal: null });
    expect(performance.now() - began).toBeLessThan(grace + 2_000);
    stopped = true;
    await Promise.all(load);

    // Told by the broker; or, once nobody listened any more, cut off by the operating system: then the client library
    // picks the code, and there is no reason, which every answer of the broker has.
    for (const { code, reason } of refused) {
      if (reason === '') expect(['Unavailable', 'Aborted', 'Internal']).toContain(code);
      else expect([code, reason]).toEqual(['Unavailable', 'SHUTTING_DOWN']);
    }
    for (const stream of streams)
      expect(await stream.ended).toMatchObject({ code: 'Unavailable', reason: 'SHUTTING_DOWN' });

    const leases = await leasesOf(estate, taskId);
    const recorded = new Set(leases.filter((lease) => lease['state'] === 'active').map((lease) => lease['lease_id']));
    expect(acknowledged.filter((leaseId) => !recorded.has(leaseId))).toEqual([]);
    expect(leases.filter((lease) => lease['state'] === 'pending')).toEqual([]);
    expect(
      await brokerRows(
        estate,
        `SELECT pid FROM pg_stat_activity WHERE application_name = 'leasehold' AND datname = current_database()`,
      ),
    ).toEqual([]);

    const next = await startProcess(estate);
    await callers(estate).orchestrator.closeTask({ taskId });
    await expectSettled(estate, taskId, 30_000);
    await next.stop();
  },
);

test(
  'SIGTERM while a target hangs and a call waits for it: the broker still ends in time',
  { timeout: 60_000 },
  async () => {
    estate = await createEstate('sigtermhang');
    const network = await startProxy(estate.target.host, estate.target.port);
    await editConfig(estate, ({ server, targets }) => {
      Object.assign(server!, { shutdownGrace: '3s' });
      Object.assign(targets!['warehouse']!, {
        port: network.port,
        connectPort: estate.target.port,
        issueTimeout: '10s',
      });
    });
    // The program itself: what it does not let go of may not keep the process either.
    const main = path.join(import.meta.dirname, '..', '..', 'src', 'main.ts');
    const broker = spawn(process.execPath, [main, 'serve', '--config', estate.configFile], { stdio: 'ignore' });
    const exited = once(broker, 'exit');
    await eventually(async () => expect((await fetch(`${estate.httpUrl}/readyz`)).status).toBe(200));
    const { agent, orchestrator } = callers(estate);
    const [closing, open] = [await openTask(estate), await openTask(estate)];
    await agent.issueCredential({ taskId: closing, ...warehouseRead });
    await network.mode('hang');
    await orchestrator.closeTask({ taskId: closing });
    const waiting = refusalOf(agent.issueCredential({ taskId: open, ...warehouseRead }));
    await eventually(async () => {
      expect((await leasesOf(estate, closing))[0]!['settle_attempts']).toBeGreaterThan(0);
      expect(await leasesOf(estate, open)).toMatchObject([{ state: 'pending' }]);
    });

    const began = performance.now();
    broker.kill('SIGTERM');
    expect(await exited).toEqual([0, null]);
    expect(performance.now() - began).toBeLessThan(3_000 + 4_000);
    expect(await waiting).toMatchObject({ code: 'Unavailable', reason: 'SHUTTING_DOWN' });
    await network.close();
  },
);

function follow(stream: AsyncIterable<unknown>) {
  let count = 0;
  const ended = refusalOf(
    (async () => {
      for await (const message of stream) if (message !== undefined) count += 1;
    })(),
  );
  return { messages: () => count, ended };
}
