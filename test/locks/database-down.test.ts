import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { LockService, LockState } from '../../src/gen/leasehold/v1/lock_service_pb.js';
import { brokerRows, callers, editConfig, openTask, refusalOf, reportsRead, retrying } from '../faults/support.ts';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import { startProxy, type TestProxy } from '../support/proxy.ts';

/** Between broker and database stands a network that can be cut. */
let estate: TestEstate;
let network: TestProxy;
let broker: Awaited<ReturnType<typeof startInProcess>>;
beforeAll(async () => {
  estate = await createEstate('lockdown', { locks: { peopleToLift: 2 } });
  await editConfig(estate, (config) => {
    (config['access'] as unknown as object[]).push({
      workloads: ['spiffe://dev.leasehold.test/second-operator'],
      roles: ['operator'],
    });
  });
  const file = path.join(estate.dir, 'database-url');
  const url = new URL(await readFile(file, 'utf8'));
  network = await startProxy(url.hostname, Number(url.port));
  url.port = String(network.port);
  await writeFile(file, url.href);
  broker = await startInProcess(estate);
});
afterAll(async () => {
  await broker?.stop(500);
  await network?.close();
  await estate?.remove();
});

test(
  'without its database a broker issues nothing, and does not say that it has locked',
  { timeout: 120_000 },
  async () => {
    const taskId = await openTask(estate);
    const { agent } = callers(estate);
    const issue = () => agent.issueCredential({ requestId: crypto.randomUUID(), taskId, ...reportsRead });
    await issue();
    const before = await brokerRows(estate, 'SELECT FROM leases');
    await network.mode('refuse');
    const request = {
      requestId: crypto.randomUUID(),
      scope: { scope: { case: 'all', value: true } as const },
      reason: 'now',
    };
    const operator = estate.client(LockService, 'operator');
    expect(await refusalOf(issue())).toMatchObject({ code: 'Unavailable' });
    expect(await refusalOf(operator.createLock(request))).toMatchObject({ code: 'Unavailable' });
    await network.mode('pass');
    expect(await brokerRows(estate, 'SELECT FROM leases')).toHaveLength(before.length);
    // The very same request again, as a client with retries does.
    const { lock } = await retrying(() => operator.createLock(request));
    expect(await refusalOf(retrying(issue))).toMatchObject({ reason: 'LOCKED' });

    // Two people, as the configuration says.
    const { lockId } = lock!;
    expect(lock!.peopleToLift).toBe(2);
    expect((await operator.liftLock({ lockId, reason: 'over' })).lock!.state).toBe(LockState.ACTIVE);
    const second = estate.client(LockService, 'second-operator');
    expect((await second.liftLock({ lockId, reason: 'yes' })).lock!.state).toBe(LockState.LIFTED);
    await issue();
  },
);
