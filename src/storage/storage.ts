import { createApprovalStore } from './approval-store.ts';
import { readAlarms } from './alarm-store.ts';
import { createAuditStore } from './audit-store.ts';
import { createCallStore } from './call-store.ts';
import { createFactsStore } from './facts-store.ts';
import { createLeaseCareStore } from './lease-care-store.ts';
import { createHandoverStore } from './handover-store.ts';
import { createLeaseStore } from './lease-store.ts';
import { createLeaseWriter } from './lease-writer.ts';
import { createEventIds } from './event-ids.ts';
import { createEvidenceStore } from './evidence-store.ts';
import { createLockStore } from './lock-store.ts';
import { checkSchema } from './migrate.ts';
import { createNotificationStore, type Outbox } from './notification-store.ts';
import { createDecisionStore } from './decision-store.ts';
import { connectionOptions, createPool, guarded, type DatabaseOptions } from './pool.ts';
import { createPolicyStore } from './policy-store.ts';
import { createReconcileStore } from './reconcile-store.ts';
import { createReevaluationStore } from './reevaluation-store.ts';
import { createReportStore } from './report-store.ts';
import { createRevocationStore } from './revocation-store.ts';
import { createSettlementStore } from './settlement-store.ts';
import { createSignalReevaluationStore } from './signal-reevaluation-store.ts';
import { createSignalStore } from './signal-store.ts';
import { createTaskStore } from './task-store.ts';
import { createTimelineStore } from './timeline-store.ts';
import { createTaskTokenStore } from './task-token-store.ts';
import { createWake } from './wake.ts';

/** Milliseconds between two looks at our own clock with one at the database's in between. */
const longestLook = 5_000;
const mostLooks = 3;

export type Storage = Awaited<ReturnType<typeof openStorage>>;

/** Connects, and refuses a database that this release does not fit. */
export async function openStorage(options: DatabaseOptions & { maxCallsPerTask?: number }) {
  const pool = createPool(options);
  try {
    const schemaVersion = await checkSchema(pool);
    const connection = connectionOptions(options);
    const writer = createLeaseWriter({ connection, onError: options.onError });
    const { onError, maxCallsPerTask: maxPerTask = 100_000 } = options;
    const calls = createCallStore(pool, { connection, onError, maxPerTask });
    const wake = createWake({ ...connection, statement_timeout: 0, query_timeout: 0 });
    const eventIds = createEventIds(pool);
    return {
      pool,
      schemaVersion,
      tasks: createTaskStore(pool),
      leases: createLeaseStore(pool),
      leaseCare: createLeaseCareStore(pool),
      taskTokens: createTaskTokenStore(pool),
      locks: createLockStore(pool),
      evidence: createEvidenceStore(pool, eventIds),
      writer,
      calls,
      facts: createFactsStore(pool),
      settlement: createSettlementStore(pool),
      audit: createAuditStore(pool, eventIds),
      timeline: createTimelineStore(pool, eventIds),
      revocations: createRevocationStore(pool),
      notifications: createNotificationStore(pool),
      approvals: (outbox: Outbox) => createApprovalStore(pool, outbox),
      handover: (outbox: Outbox) => createHandoverStore(pool, outbox),
      policies: createPolicyStore(pool),
      reports: createReportStore(pool),
      decisions: createDecisionStore(pool),
      reevaluation: createReevaluationStore(pool),
      signals: createSignalStore(pool),
      signalReevaluation: createSignalReevaluationStore(pool),
      reconciliation: createReconcileStore(pool),
      alarms: () => readAlarms(pool),
      wake,

      /** Milliseconds by which the database's clock is ahead of `now`, within half the round trip. */
      clockOffset: (now: () => number) =>
        guarded(async () => {
          for (let round = 1; ; round++) {
            const before = now();
            const { rows } = await pool.query<{ now: Date }>('SELECT clock_timestamp() AS now');
            const after = now();
            // Our clock was set meanwhile, or the answer took so long that its middle says nothing.
            const isUseless = after < before || after - before > longestLook;
            if (!isUseless || round === mostLooks) return rows[0]!.now.getTime() - (before + after) / 2;
          }
        }),

      close: async () => {
        await Promise.all([writer.close(), calls.close(), wake.close()]);
        await pool.end();
      },
    };
  } catch (error) {
    await pool.end();
    throw error;
  }
}
