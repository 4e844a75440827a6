import { describe, test } from 'vitest';
import type { FaultPoint } from '../../src/domain/telemetry.ts';
import { createEstate, startProcess } from '../support/broker.ts';
import {
  callers,
  editConfig,
  eventually,
  expectSettled,
  leasesOf,
  logIn,
  loginOf,
  openTask,
  ordersSeenBy,
  refusalOf,
  reportsRead,
  retrying,
  rolesOf,
  warehouseRead,
} from './support.ts';

const closing: FaultPoint[] = ['close.committed', 'settle.claimed', 'settle.revoked', 'settle.recorded'];

/** Fault 2. */
describe.concurrent('a broker killed while it closes a task', () => {
  test.for(closing)('at %s: the next one completes the close', { timeout: 90_000 }, async (point, { expect }) => {
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

const issuing: { point: FaultPoint; madeAtTarget: boolean; survives: boolean }[] = [
  { point: 'issue.pending-committed', madeAtTarget: false, survives: false },
  { point: 'issue.credential-made', madeAtTarget: true, survives: false },
  // The lease is whole: only the answer was lost. The retry gets a new password for the same login.
  { point: 'issue.activated', madeAtTarget: true, survives: true },
];

/** Fault 1. */
describe.concurrent('a broker killed while it issues a login', () => {
  test.for(issuing)(
    'at $point leaves none behind, and the agent’s retry works',
    async ({ point, madeAtTarget, survives }, { expect: check }) => {
      const estate = await createEstate('crash');
      await editConfig(estate, ({ targets }) => Object.assign(targets!['warehouse']!, { issueTimeout: '1s' }));
      const doomed = await startProcess(estate, { killAt: point });
      const taskId = await openTask(estate);
      const request = { requestId: crypto.randomUUID(), taskId, ...warehouseRead };

      const lost = await refusalOf(callers(estate).agent.issueCredential(request));
      check(await doomed.exited).toEqual({ code: null, signal: 'SIGKILL' });
      check(lost.reason).toBe('');
      const [stranded] = await leasesOf(estate, taskId);
      check(stranded).toMatchObject({ state: survives ? 'active' : 'pending', outcome: null });
      check(await rolesOf(estate, [stranded!])).toHaveLength(madeAtTarget ? 1 : 0);

      const broker = await startProcess(estate);
      try {
        const { credential } = await retrying(() => callers(estate).agent.issueCredential(request));
        check(await ordersSeenBy(loginOf(credential))).toBe(3);
        check(credential!.lease!.leaseId === stranded!['lease_id']).toBe(survives);
        if (!survives) {
          await eventually(async () =>
            check((await leasesOf(estate, taskId))[0]).toMatchObject({ state: 'settled', outcome: 'revoked' }),
          );
          check(await rolesOf(estate, [stranded!])).toEqual([]);
        }
        check((await leasesOf(estate, taskId)).filter((lease) => lease['state'] === 'active')).toHaveLength(1);

        await callers(estate).orchestrator.closeTask({ taskId, wait: true });
        await expectSettled(estate, taskId);
        await check(ordersSeenBy(loginOf(credential))).rejects.toThrow();
      } finally {
        await broker.stop();
        await estate.remove();
      }
    },
  );
});
