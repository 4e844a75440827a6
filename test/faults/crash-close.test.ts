import { describe, test } from 'vitest';
import type { FaultPoint } from '../../src/domain/telemetry.ts';
import { createEstate, startProcess } from '../support/broker.ts';
import {
  callers,
  expectSettled,
  logIn,
  loginOf,
  openTask,
  ordersSeenBy,
  refusalOf,
  reportsRead,
  warehouseRead,
} from './support.ts';

const points: FaultPoint[] = ['close.committed', 'settle.claimed', 'settle.revoked', 'settle.recorded'];

/** Fault 2. */
describe.concurrent('a broker killed while it closes a task', () => {
  test.for(points)('at %s: the next one completes the close', { timeout: 90_000 }, async (point, { expect }) => {
    const estate = await createEstate('crashclose');
    const doomed = await startProcess(estate, { killAt: point });
    const { agent, orchestrator } = callers(estate);
    const taskId = await openTask(estate);
    const request = { taskId, ...warehouseRead };
    const [{ credential: first }, { credential: second }] = [
      await agent.issueCredential(request),
      await agent.issueCredential(request),
    ];
    await agent.issueCredential({ taskId, ...reportsRead });
    const session = await logIn(loginOf(first));
    const ended = new Promise((resolve) => session.once('end', resolve));

    // Killed in the call itself, or behind its back.
    await Promise.race([orchestrator.closeTask({ taskId, wait: true }).catch(() => undefined), doomed.exited]);
    expect(await doomed.exited).toEqual({ code: null, signal: 'SIGKILL' });

    const broker = await startProcess(estate);
    try {
      expect(await refusalOf(agent.issueCredential(request))).toMatchObject({ reason: 'TASK_CLOSED' });
      // A claim of the killed broker has to run out first.
      const leases = await expectSettled(estate, taskId, 40_000);
      expect(leases.map((lease) => lease['outcome'])).toEqual(['revoked', 'revoked', 'revoked']);
      await ended;
      for (const credential of [first, second]) await expect(ordersSeenBy(loginOf(credential))).rejects.toThrow();
      const { summary } = await orchestrator.closeTask({ taskId });
      expect(summary).toMatchObject({ unsettled: 0, revoked: 3 });
    } finally {
      await broker.stop();
      await estate.remove();
    }
  });
});
