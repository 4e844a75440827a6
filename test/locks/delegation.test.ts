import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { devWorkload } from '../../src/dev/environment.ts';
import { LockService, type LockScope } from '../../src/gen/leasehold/v1/lock_service_pb.js';
import { access, openChild, openRoot, startEstate, type Estate } from '../delegation/support.ts';
import { refusal } from '../e2e/support.ts';

/** What is locked above holds for what was handed on. */
let estate: Estate;
beforeAll(async () => {
  estate = await startEstate('lockbelow');
});
afterAll(() => estate?.stop());

const helper = 'agent/helper/1';
const locks = () => estate.estate.client(LockService, 'operator');

async function under(scope: LockScope['scope'], work: () => Promise<void>): Promise<void> {
  const { lock } = await locks().createLock({ requestId: randomUUID(), scope: { scope }, reason: 'drill' });
  await work();
  await locks().liftLock({ lockId: lock!.lockId, reason: 'over' });
}

test('a lock on the agent, a workload or a task above refuses what is below, on every replica', async () => {
  const root = await openRoot(estate, 'lead');
  const child = await openChild(estate, 'agent/lead/1', root.taskId);
  const below = await openChild(estate, helper, child.taskId);
  const other = await openRoot(estate, 'lead');
  const ask = (taskId: string, port?: number) =>
    estate.credentials(helper, port).issueCredential({ requestId: randomUUID(), taskId, ...access.reports });
  const { credential } = await ask(below.taskId);
  const scopes: LockScope['scope'][] = [
    { case: 'agent', value: 'lead' },
    { case: 'workload', value: devWorkload('agent/lead/1') },
    { case: 'workload', value: devWorkload('agent/lead/*') },
    { case: 'taskId', value: root.taskId },
    { case: 'taskId', value: child.taskId },
  ];
  for (const scope of scopes) {
    await under(scope, async () => {
      for (const port of estate.ports)
        expect(await refusal(ask(below.taskId, port))).toMatchObject({ reason: 'LOCKED' });
      const renewal = { requestId: randomUUID(), leaseId: credential!.lease!.leaseId };
      expect(await refusal(estate.credentials(helper).renewCredential(renewal))).toMatchObject({ reason: 'LOCKED' });
      expect(await refusal(openChild(estate, helper, child.taskId))).toMatchObject({ reason: 'LOCKED' });
    });
    await ask(below.taskId, estate.ports[1]);
  }
  // What is beside it goes on.
  await under({ case: 'taskId', value: child.taskId }, async () => {
    await openChild(estate, 'agent/lead/1', root.taskId);
    const beside = await openChild(estate, 'agent/lead/1', other.taskId);
    await ask(beside.taskId);
  });
});

test('a task is not handed over to what is locked', async () => {
  const root = await openRoot(estate, 'lead');
  const to = { agent: 'lead', agentWorkload: devWorkload('agent/lead/2') };
  const handOver = () =>
    estate
      .tasks('orchestrator')
      .handOverTask({ requestId: randomUUID(), taskId: root.taskId, ...to, justification: 'shift' });
  await under({ case: 'workload', value: devWorkload('agent/lead/2') }, async () => {
    expect(await refusal(handOver())).toMatchObject({ reason: 'LOCKED' });
  });
  expect((await handOver()).task!.agentWorkload).toBe(to.agentWorkload);
});
