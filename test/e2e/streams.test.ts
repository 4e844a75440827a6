import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { freePort } from '../../src/dev/postgres.ts';
import { LeaseState, TaskState } from '../../src/gen/leasehold/v1/common_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { createVerifier, followRevocations } from '../../src/verifier/index.ts';
import { startProcess } from '../support/broker.ts';
import type { BrokerProcess } from '../support/broker.ts';
import type { Parties, Served } from './support.ts';
import {
  clientWith,
  editPolicy,
  gather,
  held,
  kioskRead,
  loginOf,
  loginRefusal,
  ms,
  openTask,
  parties,
  refusal,
  refusalOf,
  reportsRead,
  roleExists,
  serve,
  sql,
  tickerRead,
  tokenOf,
  warehouseRead,
} from './support.ts';

let served: Served;
/** A second replica, in a process of its own, on the same database. */
let second: BrokerProcess;
let other: Parties;
let otherPort: number;

beforeAll(async () => {
  served = await serve('streams');
  const { estate } = served;
  const grpcPort = await freePort();
  otherPort = await freePort();
  const config = await readFile(estate.configFile, 'utf8');
  const configFile = path.join(estate.dir, 'second.yaml');
  const listen = (from: number, to: number) => [`listen: 127.0.0.1:${from}`, `listen: 127.0.0.1:${to}`] as const;
  await writeFile(
    configFile,
    config.replace(...listen(estate.grpcPort, grpcPort)).replace(...listen(estate.httpPort, otherPort)),
  );
  second = await startProcess(estate, { configFile });
  other = parties(estate, otherPort);
});
afterAll(async () => {
  await second?.stop();
  await served.stop();
});

describe('a stream of credentials', () => {
  test('delivers the next one before the last runs out, without a gap, until the task closes', async () => {
    const { taskId } = await openTask(served, [tickerRead]);
    const stream = gather(served.agent.streamCredential({ taskId, ...tickerRead }));
    const arrivals: number[] = [];
    await expect
      .poll(
        () => {
          while (arrivals.length < stream.items.length) arrivals.push(Date.now());
          return stream.items.length;
        },
        { timeout: 20_000, interval: 10 },
      )
      .toBe(4);
    await served.tasks.closeTask({ taskId });
    expect(await stream.ended).toBeUndefined();

    const line = stream.items.map(held);
    for (const [index, one] of line.entries()) {
      const before = line[index - 1];
      expect(one.lease.renewedFromLeaseId).toBe(before?.lease.leaseId ?? '');
      if (before !== undefined) expect(arrivals[index]!).toBeLessThan(ms(before.lease.expireTime));
    }
    expect(new Set(line.map((one) => tokenOf(one))).size).toBe(4);
    const rows = await sql(served.estate.databaseUrl, 'SELECT lease_id FROM leasehold.leases WHERE task_id = $1', [
      taskId,
    ]);
    expect(rows).toHaveLength(4);
  });

  test('delivers logins that work one after the other, and the target is left with none of them', async () => {
    const { taskId } = await openTask(served, [kioskRead]);
    const stream = gather(served.agent.streamCredential({ taskId, ...kioskRead }));
    for (let arrived = 1; arrived <= 3; arrived++) {
      await expect.poll(() => stream.items.length, { timeout: 15_000 }).toBeGreaterThanOrEqual(arrived);
      expect(await loginRefusal(loginOf(held(stream.items[arrived - 1]!)))).toBeUndefined();
    }
    const closed = await served.tasks.closeTask({ taskId, wait: true });
    expect(closed.task!.state).toBe(TaskState.CLOSED);
    expect(await stream.ended).toBeUndefined();
    for (const item of stream.items) expect(await roleExists(served.estate, loginOf(held(item)).username)).toBe(false);
    expect(closed.leases.every(({ state }) => state === LeaseState.SETTLED)).toBe(true);
  });

  test('ends at once when the task is closed, not only when the next is due', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const stream = gather(served.agent.streamCredential({ taskId, ...reportsRead }));
    await expect.poll(() => stream.items.length).toBe(1);
    await served.tasks.closeTask({ taskId });
    // The token lives for ten minutes: only the close can end this within the test's own time.
    expect(await stream.ended).toBeUndefined();
  });

  test('of a task that has ended, or of a tier that is denied, is refused before anything is delivered', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const denied = gather(served.agent.streamCredential({ taskId, ...warehouseRead }));
    expect(refusalOf((await denied.ended)!)).toMatchObject({ reason: 'POLICY_DENIED' });
    await served.tasks.closeTask({ taskId });
    const ended = gather(served.agent.streamCredential({ taskId, ...reportsRead }));
    expect(refusalOf((await ended.ended)!)).toMatchObject({ reason: 'TASK_CLOSED' });
    expect([...denied.items, ...ended.items]).toEqual([]);
  });
});

describe('a watch of a task', () => {
  test('sends the task now, after each change, and ends when it is closed', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    const watch = gather(served.tasks.watchTask({ taskId }));
    await expect.poll(() => watch.items.length).toBe(1);
    expect(watch.items[0]).toMatchObject({
      task: { taskId, state: TaskState.OPEN },
      leases: [],
      summary: { unsettled: 0 },
    });
    const { lease } = held(await served.agent.issueCredential({ taskId, ...reportsRead }));
    await expect
      .poll(() => watch.items.at(-1)!.leases.map(({ leaseId }) => leaseId), { timeout: 5_000 })
      .toEqual([lease.leaseId]);
    expect(watch.items.at(-1)).toMatchObject({ leases: [{ state: LeaseState.ACTIVE }], summary: { unsettled: 1 } });
    await served.tasks.closeTask({ taskId });
    expect(await watch.ended).toBeUndefined();
    expect(watch.items.at(-1)).toMatchObject({
      task: { state: TaskState.CLOSED },
      leases: [{ state: LeaseState.SETTLED }],
      summary: { unsettled: 0, revoked: 1 },
    });
    for (const [index, item] of watch.items.entries()) expect(item).not.toEqual(watch.items[index - 1]);
  });

  test('of a closed task sends it once and ends', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    await served.tasks.closeTask({ taskId, wait: true });
    const watch = gather(served.tasks.watchTask({ taskId }));
    expect(await watch.ended).toBeUndefined();
    expect(watch.items).toMatchObject([{ task: { state: TaskState.CLOSED } }]);
  });

  test('says nothing while nothing changes, heartbeats included', async () => {
    const { taskId } = await openTask(served, [reportsRead], { heartbeatInterval: { seconds: 60n } });
    const watch = gather(served.tasks.watchTask({ taskId }));
    await expect.poll(() => watch.items.length).toBe(1);
    for (let beat = 0; beat < 5; beat++) {
      await served.tasks.heartbeatTask({ taskId });
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
    await served.tasks.closeTask({ taskId });
    await watch.ended;
    expect(watch.items.filter(({ task }) => task!.state === TaskState.OPEN)).toHaveLength(1);
  });
});

describe('two replicas on one database', () => {
  test('a close on one ends the streams of the other, and its issues', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    held(await other.agent.issueCredential({ taskId, ...reportsRead }));
    const stream = gather(other.agent.streamCredential({ taskId, ...reportsRead }));
    const watch = gather(other.tasks.watchTask({ taskId }));
    await expect.poll(() => [stream.items.length, watch.items.length > 0]).toEqual([1, true]);
    await served.tasks.closeTask({ taskId });
    expect(await refusal(other.agent.issueCredential({ taskId, ...reportsRead }))).toMatchObject({
      reason: 'TASK_CLOSED',
    });
    expect(await stream.ended).toBeUndefined();
    expect(await watch.ended).toBeUndefined();
    expect(watch.items.at(-1)).toMatchObject({
      task: { state: TaskState.CLOSED },
      summary: { unsettled: 0, revoked: 2 },
    });
  });

  test('what one signs the other publishes, and what one revokes the other tells', async () => {
    const { taskId } = await openTask(other, [reportsRead]);
    const token = tokenOf(held(await served.agent.issueCredential({ taskId, ...reportsRead })));
    const { mint, httpUrl } = served.estate;
    const baseUrl = `http://127.0.0.1:${otherPort}`;
    const feed = followRevocations({ baseUrl, token: () => mint('tool/reports') });
    try {
      await feed.ready();
      const tool = createVerifier({
        issuer: httpUrl,
        audience: 'https://reports.dev.leasehold.test',
        jwks: `${baseUrl}/.well-known/jwks.json`,
        feed,
      });
      expect((await tool.verify(token)).taskId).toBe(taskId);
      await served.tasks.closeTask({ taskId });
      await expect
        .poll(
          () =>
            tool.verify(token).then(
              () => 'accepted',
              (error: { code: string }) => error.code,
            ),
          { timeout: 5_000 },
        )
        .toBe('revoked');
    } finally {
      await feed.close();
    }
  });

  test('a close on one while the other issues leaves nothing behind', async () => {
    const { taskId } = await openTask(served, [reportsRead]);
    let closedAt = Infinity;
    const late: number[] = [];
    const issuing = Array.from({ length: 8 }, async () => {
      for (;;) {
        const begun = performance.now();
        const refused = await other.agent.issueCredential({ taskId, ...reportsRead }).then(
          () => undefined,
          async (error: unknown) => await refusal(Promise.reject(error as Error)),
        );
        if (refused === undefined && begun > closedAt) late.push(begun);
        if (refused !== undefined) return refused.reason;
      }
    });
    await expect.poll(async () => (await served.admin.listLeases({ taskId })).leases.length).toBeGreaterThan(8);
    const closed = await served.tasks.closeTask({ taskId });
    closedAt = performance.now();
    expect(await Promise.all(issuing)).toEqual(Array.from({ length: 8 }, () => 'TASK_CLOSED'));
    expect(late).toEqual([]);
    expect(closed.leases.length).toBeGreaterThan(8);
    const settled = await served.tasks.closeTask({ taskId, wait: true });
    expect(settled.summary).toMatchObject({ unsettled: 0, revoked: settled.leases.length });
  });
});

test('a refused renewal ends the stream of credentials with its reason, and the last one lives on', async () => {
  const { taskId } = await openTask(served, [tickerRead]);
  const stream = gather(served.agent.streamCredential({ taskId, ...tickerRead }));
  await expect.poll(() => stream.items.length).toBe(1);
  await editPolicy(served, 'e2e.yaml', (text) => text.replace('agents: [analyst, crew]', 'agents: [crew]'));
  const refused = refusalOf((await stream.ended)!);
  expect(refused).toMatchObject({ code: 'FailedPrecondition', reason: 'RENEWAL_REFUSED' });
  const last = held(stream.items.at(-1)!);
  expect(refused.metadata).toMatchObject({ lives_until: new Date(ms(last.lease.expireTime)).toISOString() });
});

test('a stream gives nothing to a workload that is not its agent any more', async () => {
  const { taskId } = await openTask(served, [reportsRead, tickerRead], { agent: 'crew' });
  const crew = served.estate.client(CredentialService, 'agent/crew/1');
  const stream = gather(crew.streamCredential({ taskId, ...tickerRead }));
  await expect.poll(() => stream.items.length).toBe(1);
  await editPolicy(served, 'e2e.yaml', (text) => text.replace('agent/crew/*', 'agent/crew/2'));
  expect(refusalOf((await stream.ended)!)).toMatchObject({ code: 'FailedPrecondition', reason: 'RENEWAL_REFUSED' });
});

test('a stream gives nothing beyond the life of the attestation that opened it', async () => {
  const { taskId } = await openTask(served, [tickerRead], { agent: 'crew' });
  const exp = Math.floor(Date.now() / 1_000) + 6;
  const svid = await served.estate.mint('agent/crew/2', exp * 1_000 - Date.now());
  const stream = gather(
    clientWith(CredentialService, served.estate.httpPort, svid).streamCredential({ taskId, ...tickerRead }),
  );
  expect(refusalOf((await stream.ended)!)).toMatchObject({ code: 'Unauthenticated', reason: 'ATTESTATION_EXPIRED' });
  expect(stream.items.length).toBeGreaterThan(1);
  for (const { lease } of stream.items.map(held)) expect(ms(lease.issueTime)).toBeLessThan((exp + 1) * 1_000);
});
