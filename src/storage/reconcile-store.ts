import type pg from 'pg';
import type { Known, ReconcileStore } from '../domain/reconciliation.ts';
import { guarded } from './pool.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest, leaseFromRow } from './rows.ts';

type Row = Record<string, unknown>;

/** Every tenant that has tasks, by skipping through the primary key. */
const tenants = `tenants AS (
  (SELECT tenant FROM tasks ORDER BY tenant LIMIT 1)
  UNION ALL
  SELECT (SELECT t.tenant FROM tasks t WHERE t.tenant > p.tenant ORDER BY t.tenant LIMIT 1)
  FROM tenants p WHERE p.tenant IS NOT NULL
)`;

export function createReconcileStore(pool: pg.Pool): ReconcileStore {
  const query = async <T extends pg.QueryResultRow>(text: string, values: unknown[]): Promise<T[]> =>
    await guarded(async () => (await pool.query<T>(text, values)).rows);

  return {
    begin: async ({ tenant, provider, target }, by, now, until) => {
      const rows = await query<{ claimed_by: string }>(
        `INSERT INTO reconciliations AS r (tenant, provider, target, known_since, claimed_by, claimed_until)
         VALUES ($1, $2, $3, $5, $4, $6)
         ON CONFLICT (tenant, provider, target) DO UPDATE SET
           claimed_by = CASE WHEN r.claimed_until > $5 THEN r.claimed_by ELSE $4 END,
           claimed_until = CASE WHEN r.claimed_until > $5 THEN r.claimed_until ELSE $6 END
         RETURNING claimed_by`,
        [tenant, provider, target, by, new Date(now), new Date(until)],
      );
      const holder = rows[0]!.claimed_by;
      return holder === by ? undefined : holder;
    },

    beginDue: async ({ tenant, provider, target }, by, now, until, every) => {
      const rows = await query(
        `INSERT INTO reconciliations AS r (tenant, provider, target, known_since) VALUES ($1, $2, $3, $5)
         ON CONFLICT (tenant, provider, target) DO UPDATE SET claimed_by = $4, claimed_until = $6
           WHERE COALESCE(r.finished_at, r.known_since) <= $7 AND (r.claimed_until IS NULL OR r.claimed_until <= $5)
         RETURNING r.claimed_by`,
        [tenant, provider, target, by, new Date(now), new Date(until), new Date(now - every)],
      );
      return (rows[0] as { claimed_by: string | null } | undefined)?.claimed_by === by;
    },

    extend: async ({ tenant, provider, target }, by, until) => {
      const rows = await query(
        `UPDATE reconciliations SET claimed_until = $5
         WHERE tenant = $1 AND provider = $2 AND target = $3 AND claimed_by = $4 RETURNING 1 AS one`,
        [tenant, provider, target, by, new Date(until)],
      );
      return rows.length > 0;
    },

    end: async ({ tenant, provider, target }, by, now, result) => {
      await query(
        `UPDATE reconciliations SET claimed_by = NULL, claimed_until = NULL,
           finished_at = CASE WHEN $5 THEN $6 ELSE finished_at END,
           strays = CASE WHEN $5 THEN $7 ELSE strays END, missing = CASE WHEN $5 THEN $8 ELSE missing END
         WHERE tenant = $1 AND provider = $2 AND target = $3 AND claimed_by = $4`,
        [tenant, provider, target, by, result !== undefined, new Date(now), result?.strays ?? 0, result?.missing ?? 0],
      );
    },

    known: async (leaseIds, taskIds) => {
      // Primary keys, once for each tenant.
      const rows = await query<{
        id: string;
        kind: Known['as'];
        tenant: string;
        task_id: string;
        lease_id: string | null;
      }>(
        `WITH RECURSIVE ${tenants}
         SELECT l.lease_id AS id, l.tenant, l.task_id, l.lease_id,
           CASE WHEN l.state <> 'settled' THEN 'open'
             WHEN l.outcome = 'irrevocable' AND l.abandoned_at IS NULL THEN 'irrevocable' ELSE 'settled' END AS kind
         FROM tenants CROSS JOIN unnest($1::text[]) AS i(id)
         JOIN leases l ON l.tenant = tenants.tenant AND l.lease_id = i.id
         UNION ALL
         SELECT t.task_id AS id, t.tenant, t.task_id, NULL, CASE WHEN t.settled_at IS NULL THEN 'open'
             WHEN t.state = 'close_degraded' THEN 'irrevocable' ELSE 'settled' END AS kind
         FROM tenants CROSS JOIN unnest($2::text[]) AS i(id)
         JOIN tasks t ON t.tenant = tenants.tenant AND t.task_id = i.id`,
        [leaseIds, taskIds],
      );
      return new Map(
        rows.map(({ id, kind, tenant, task_id: taskId, lease_id: leaseId }): [string, Known] => [
          id,
          kind === 'settled' ? { as: 'settled', tenant, taskId, leaseId: leaseId ?? undefined } : { as: kind },
        ]),
      );
    },

    active: async ({ tenant, provider, target }, after, limit) => {
      // Index leases_due; `settle_at` of an active lease only moves when it is about to end.
      const rows = await query(
        `SELECT * FROM leases
         WHERE state <> 'settled' AND state = 'active' AND tenant = $1 AND provider = $2 AND split_part(handle, '/', 1) = $3
           AND settle_at >= COALESCE($4, '-infinity'::timestamptz)
           AND (settle_at, lease_id) > (COALESCE($4, '-infinity'::timestamptz), $5)
         ORDER BY settle_at, lease_id LIMIT $6`,
        [
          tenant,
          provider,
          target,
          after?.settleAt === undefined ? null : new Date(after.settleAt),
          after?.leaseId ?? '',
          limit,
        ],
      );
      return rows.map((row) => leaseFromRow(row as Row));
    },

    activeHandles: async (tenant, leaseIds) => {
      const rows = await query<{ handle: string }>(
        `SELECT handle FROM leases WHERE tenant = $1 AND lease_id = ANY($2) AND state = 'active'`,
        [tenant, leaseIds],
      );
      return new Set(rows.map(({ handle }) => handle));
    },

    record: async (events) => {
      if (events.length === 0) return;
      await query(`${auditInsert} ${auditSelect} FROM ${auditUnnest(1)}`, auditColumns(events));
    },
  };
}
