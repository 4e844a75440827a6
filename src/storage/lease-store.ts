import type pg from 'pg';
import type { AuditEvent } from '../domain/audit.ts';
import type { Lease, LeaseOutcome, LeaseSummary } from '../domain/model.ts';
import type { LeaseFilter, LeaseStore } from '../domain/store.ts';
import type { Instant } from '../domain/time.ts';
import { guarded } from './pool.ts';
import { giveUsesBack } from './approval-uses.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest, leaseFromRow } from './rows.ts';

type Row = Record<string, unknown>;

/** Somebody should look. Index leases_troubled. */
export const troubled = `((outcome = 'irrevocable' AND abandoned_at IS NULL) OR (state <> 'settled' AND settle_error IS NOT NULL))`;

export function createLeaseStore(pool: pg.Pool): LeaseStore {
  const one = (text: string, name: string, values: unknown[]) =>
    guarded(async () => {
      const { rows } = await pool.query({ name, text, values });
      return rows[0] && leaseFromRow(rows[0] as Row);
    });

  return {
    get: (tenant, leaseId) =>
      one('SELECT * FROM leases WHERE tenant = $1 AND lease_id = $2', 'get-lease', [tenant, leaseId]),

    byRequest: (tenant, taskId, requestId) =>
      one('SELECT * FROM leases WHERE tenant = $1 AND task_id = $2 AND request_id = $3', 'lease-by-request', [
        tenant,
        taskId,
        requestId,
      ]),

    ofTask: (tenant, taskId, limit) =>
      guarded(async () => {
        const { rows } = await pool.query({
          name: 'leases-of-task',
          text: 'SELECT * FROM leases WHERE tenant = $1 AND task_id = $2 ORDER BY lease_id LIMIT $3',
          values: [tenant, taskId, limit],
        });
        return rows.map((row) => leaseFromRow(row as Row));
      }),

    list: (filter) => list(pool, filter),

    summary: (tenant, taskId) =>
      guarded(async () => {
        const { rows } = await pool.query<{ outcome: LeaseOutcome | null; count: number }>({
          name: 'summary',
          text: 'SELECT outcome, count(*)::int AS count FROM leases WHERE tenant = $1 AND task_id = $2 GROUP BY outcome',
          values: [tenant, taskId],
        });
        const summary: LeaseSummary = { unsettled: 0, revoked: 0, expired: 0, returned: 0, bounded: 0, irrevocable: 0 };
        for (const row of rows) summary[row.outcome ?? 'unsettled'] = row.count;
        return summary;
      }),

    beginReturn: (lease, claimUntil, event) => beginReturn(pool, lease, claimUntil, event),
    abandon: (lease, now, event) => abandon(pool, lease, now, event),
    reopen: (lease, handle, settleAt, event) => reopen(pool, lease, handle, settleAt, event),

    beginReissue: (lease, now, until) =>
      guarded(async () => {
        const { rowCount } = await pool.query(
          `UPDATE leases SET reissuing_until = $4
           WHERE tenant = $1 AND lease_id = $2 AND state = 'active' AND (reissuing_until IS NULL OR reissuing_until <= $3)`,
          [lease.tenant, lease.leaseId, new Date(now), new Date(until)],
        );
        return rowCount === 1;
      }),

    endReissue: (lease) =>
      guarded(async () => {
        await pool.query('UPDATE leases SET reissuing_until = NULL WHERE tenant = $1 AND lease_id = $2', [
          lease.tenant,
          lease.leaseId,
        ]);
      }),

    counts: (tenant) =>
      guarded(async () => {
        const { rows } = await pool.query<{ open: string; troubled: string }>(
          `SELECT (SELECT count(*) FROM leases WHERE tenant = $1 AND state <> 'settled') AS open,
            (SELECT count(*) FROM leases WHERE tenant = $1 AND ${troubled}) AS troubled`,
          [tenant],
        );
        return { open: Number(rows[0]!.open), troubled: Number(rows[0]!.troubled) };
      }),
  };
}

async function list(pool: pg.Pool, filter: LeaseFilter) {
  return await guarded(async () => {
    // Lease ids grow with time: the primary key gives newest first, and is the page token.
    const { rows } = await pool.query(
      `SELECT * FROM leases
       WHERE tenant = $1 AND ($2::text IS NULL OR lease_id < $2)
         AND ($3::text IS NULL OR task_id = $3)
         AND (cardinality($4::text[]) = 0 OR state = ANY($4))
         AND (NOT $5 OR ${troubled})
         AND (NOT $6 OR abandoned_at IS NOT NULL)
       ORDER BY lease_id DESC LIMIT $7`,
      [
        filter.tenant,
        filter.after ?? null,
        filter.taskId ?? null,
        filter.states,
        filter.troubled,
        filter.abandoned,
        filter.pageSize + 1,
      ],
    );
    const items = rows.slice(0, filter.pageSize).map((row) => leaseFromRow(row as Row));
    return { items, next: rows.length > filter.pageSize ? items.at(-1)!.leaseId : undefined };
  });
}

async function beginReturn(pool: pg.Pool, lease: Lease, claimUntil: Instant, event: AuditEvent) {
  return await guarded(async () => {
    const { rows } = await pool.query(
      `WITH written AS (
        UPDATE leases SET state = 'settling', settle_cause = 'returned', settle_at = $3, settling_since = clock_timestamp()
        WHERE tenant = $1 AND lease_id = $2 AND state = 'active'
        RETURNING *
      ), logged AS (
        ${auditInsert} ${auditSelect} FROM ${auditUnnest(4)} WHERE EXISTS (SELECT FROM written)
      )
      SELECT * FROM written`,
      [lease.tenant, lease.leaseId, new Date(claimUntil), ...auditColumns([event])],
    );
    return rows[0] && leaseFromRow(rows[0] as Row);
  });
}

async function reopen(pool: pg.Pool, lease: Lease, handle: string, settleAt: Instant, event: AuditEvent) {
  return await guarded(async () => {
    const { rows } = await pool.query(
      `WITH written AS (
        UPDATE leases SET state = 'pending', handle = $4, settle_at = $5
        WHERE tenant = $1 AND lease_id = $2 AND state = 'active' AND settle_cause IS NULL AND handle = $3
        RETURNING lease_id
      ), logged AS (
        ${auditInsert} ${auditSelect} FROM ${auditUnnest(6)} WHERE EXISTS (SELECT FROM written)
      )
      SELECT * FROM written`,
      [lease.tenant, lease.leaseId, lease.handle, handle, new Date(settleAt), ...auditColumns([event])],
    );
    return rows.length > 0;
  });
}

async function abandon(pool: pg.Pool, lease: Lease, now: Instant, event: AuditEvent): Promise<boolean> {
  return await guarded(async () => {
    const { rows } = await pool.query(
      // A settler that was quicker looks again when its target named the credential only now.
      `WITH written AS (
        UPDATE leases SET state = 'settling', settle_cause = 'abandoned', settle_at = $3, handle = $4,
          request_id = CASE WHEN state = 'pending' THEN request_id || '~' || lease_id ELSE request_id END
        WHERE tenant = $1 AND lease_id = $2
          AND (state = 'pending' OR (state = 'settling' AND settle_cause = 'abandoned' AND handle <> $4))
        RETURNING tenant, task_id, lease_id
      ), ${giveUsesBack('written', '$3')}, logged AS (
        ${auditInsert} ${auditSelect} FROM ${auditUnnest(5)} WHERE EXISTS (SELECT FROM written)
      )
      SELECT EXISTS (SELECT FROM leases WHERE tenant = $1 AND lease_id = $2 AND state <> 'settled') AS open`,
      [lease.tenant, lease.leaseId, new Date(now), lease.handle, ...auditColumns([event])],
    );
    return (rows[0] as { open: boolean }).open;
  });
}
