import type pg from 'pg';
import type { Revocation, RevocationStore } from '../domain/store.ts';
import { guarded } from './pool.ts';

export function createRevocationStore(pool: pg.Pool): RevocationStore {
  return {
    begin: (tenant, since) =>
      guarded(async () => {
        // Index revocations_recent. Nothing that young: what is committed from now on is the tail's.
        const { rows } = await pool.query<{ position: string; horizon: string }>({
          name: 'begin-revocations',
          text: `SELECT CASE WHEN $2::timestamptz IS NULL THEN 0 ELSE COALESCE(
              (SELECT min(position) - 1 FROM revocations WHERE tenant = $1 AND revoked_at >= $2),
              (SELECT max(position) FROM revocations WHERE tenant = $1), 0) END AS position,
            pg_snapshot_xmin(pg_current_snapshot())::text AS horizon`,
          values: [tenant, since === undefined ? null : new Date(since)],
        });
        return { position: Number(rows[0]!.position), horizon: rows[0]!.horizon };
      }),

    after: (tenant, position, limit) =>
      guarded(async () => {
        const { rows } = await pool.query({
          name: 'revocations-after',
          text: 'SELECT * FROM revocations WHERE tenant = $1 AND position > $2 ORDER BY position LIMIT $3',
          values: [tenant, position, limit],
        });
        return rows.map((row) => revocationFromRow(row as Record<string, unknown>));
      }),

    tail: (tenant, horizon, since) =>
      guarded(async () => {
        // Index revocations_tail. One statement, one snapshot: the new horizon belongs to the rows.
        const { rows } = await pool.query({
          name: 'tail-revocations',
          text: `SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS horizon, r.*
            FROM (VALUES (1)) AS always LEFT JOIN revocations r
              ON r.tenant = $1 AND r.txid >= $2::xid8 AND r.revoked_at >= $3
            ORDER BY r.position`,
          values: [tenant, horizon, new Date(since)],
        });
        const entries = rows.filter((row: Record<string, unknown>) => row.position !== null);
        return {
          entries: entries.map((row) => revocationFromRow(row as Record<string, unknown>)),
          horizon: (rows[0] as { horizon: string }).horizon,
        };
      }),

    revokedIndexes: (tenant, listNumber, listSize, now) =>
      guarded(async () => {
        // Index tasks_status_of_tenant. A task whose tokens have all run out needs no mark any more.
        const { rows } = await pool.query<{ status_index: string }>({
          name: 'revoked-indexes',
          text: `SELECT t.status_index FROM tasks t JOIN revocations r ON r.tenant = t.tenant AND r.task_id = t.task_id
            WHERE t.tenant = $4 AND t.state <> 'open' AND t.status_index >= $1 AND t.status_index < $2 AND r.forget_at > $3`,
          values: [listNumber * listSize, (listNumber + 1) * listSize, new Date(now), tenant],
        });
        return rows.map((row) => Number(row.status_index) - listNumber * listSize);
      }),
  };
}

function revocationFromRow(row: Record<string, unknown>): Revocation {
  return {
    position: Number(row.position),
    tenant: row.tenant as string,
    taskId: (row.task_id as string | null) ?? undefined,
    leaseId: (row.lease_id as string | null) ?? undefined,
    revokedAt: (row.revoked_at as Date).getTime(),
    forgetAt: (row.forget_at as Date).getTime(),
  };
}
