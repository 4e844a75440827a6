import { describe, expect, test } from 'vitest';
import type { FaultPoint } from '../../src/domain/telemetry.ts';
import { createEstate, startProcess } from '../support/broker.ts';
import {
  callers,
  editConfig,
  eventually,
  expectSettled,
  leasesOf,
  loginOf,
  openTask,
  ordersSeenBy,
  refusalOf,
  retrying,
  rolesOf,
  warehouseRead,
} from './support.ts';

const points: { point: FaultPoint; madeAtTarget: boolean; survives: boolean }[] = [
  { point: 'issue.pending-committed', madeAtTarget: false, survives: false },
  { point: 'issue.credential-made', madeAtTarget: true, survives: false },
  // The lease is whole: only the answer was lost. The retry gets a new password for the same login.
  { point: 'issue.activated', madeAtTarget: true, survives: true },
];

/** Fault 1. */
describe.concurrent('a broker killed while it issues a login', () => {
  test.for(points)(
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
