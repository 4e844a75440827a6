import type pg from 'pg';
import type { AuditEvent } from '../domain/audit.ts';
import type { LeaseCareStore, RetrySelection } from '../domain/lease-care.ts';
import type { Abandonment, Lease } from '../domain/model.ts';
import { guarded } from './pool.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest, leaseFromRow } from './rows.ts';
import { channel } from './wake.ts';

type Row = Record<string, unknown>;

export function createLeaseCareStore(pool: pg.Pool): LeaseCareStore {
  return {
    retry: (tenant, selection, page, act) => retry(pool, tenant, selection, page, act),

    claimOne: (tenant, leaseId, now, claimFor) =>
      guarded(async () => {
        const { rows } = await pool.query(
          `UPDATE leases SET settle_at = $3, settle_attempts = settle_attempts + 1
           WHERE tenant = $1 AND lease_id = $2
             AND (state = 'settling' OR (outcome = 'irrevocable' AND abandoned_at IS NULL))
           RETURNING *`,
          [tenant, leaseId, new Date(now + claimFor)],
        );
        return rows[0] && leaseFromRow(rows[0] as Row);
      }),

    abandon: (lease, abandonment, error, event) => abandon(pool, lease, abandonment, error, event),
  };
}

async function retry(
  pool: pg.Pool,
  tenant: string,
  selection: RetrySelection,
  page: { size: number; after: string | undefined },
  act: { now: number; actor: string; requestId: string; dryRun: boolean },
) {
  return await guarded(async () => {
    const ids = selection.by === 'leases' ? selection.leaseIds : null;
    // Index leases_troubled, or the primary key. One that is named is taken also when an operator had abandoned it.
    const chosen = `SELECT * FROM leases
      WHERE tenant = $1 AND ($2::text[] IS NULL OR lease_id = ANY($2)) AND ($3::text IS NULL OR task_id = $3)
        AND (outcome = 'irrevocable' OR (state <> 'settled' AND settle_error IS NOT NULL))
        AND (abandoned_at IS NULL OR $2 IS NOT NULL)
        AND ($4::text IS NULL OR lease_id > $4)
      ORDER BY lease_id LIMIT $5`;
    const values: unknown[] = [
      tenant,
      ids,
      selection.by === 'task' ? selection.taskId : null,
      page.after ?? null,
      page.size + 1,
    ];
    const { rows } = act.dryRun
      ? await pool.query(chosen, values)
      : await pool.query(
          `WITH chosen AS (${chosen} FOR UPDATE), page AS (SELECT * FROM chosen ORDER BY lease_id LIMIT $5 - 1), done AS (
            UPDATE leases l
            SET settle_at = $6, settle_attempts = 0, abandoned_at = NULL, abandoned_by = NULL, abandon_reason = NULL
            FROM page c WHERE l.tenant = c.tenant AND l.lease_id = c.lease_id
            RETURNING l.*
          ), logged AS (
            ${auditInsert}
            SELECT tenant, 'lease.retried', $6, $7, task_id, lease_id, json_build_object('tool', tool, 'tier', tier,
              'state', COALESCE(outcome, state), 'attempts', settle_attempts, 'error', settle_error,
              'abandoned_by', abandoned_by, 'request_id', $8::text)
            FROM page
          ), woken AS (
            SELECT pg_notify('${channel}', tenant || ' ' || task_id) FROM (SELECT DISTINCT tenant, task_id FROM done) changed
          )
          SELECT d.*, (SELECT count(*) FROM chosen) AS found, (SELECT count(*) FROM woken) AS woken
          FROM done d ORDER BY lease_id`,
          [...values, new Date(act.now), act.actor, act.requestId],
        );
    const items = rows.slice(0, page.size).map((row) => leaseFromRow(row as Row));
    const found = act.dryRun ? rows.length : Number((rows[0] as Row | undefined)?.found ?? 0);
    return { items, next: found > page.size ? items.at(-1)!.leaseId : undefined };
  });
}

async function abandon(
  pool: pg.Pool,
  lease: Lease,
  { at, by, reason }: Abandonment,
  error: string,
  event: AuditEvent,
): Promise<Lease | undefined> {
  return await guarded(async () => {
    const { rows } = await pool.query(
      `WITH written AS (
        UPDATE leases SET state = 'settled', outcome = 'irrevocable', settled_at = COALESCE(settled_at, $3),
          abandoned_at = $3, abandoned_by = $4, abandon_reason = $5, settle_error = $6
        WHERE tenant = $1 AND lease_id = $2 AND abandoned_at IS NULL AND (state = 'settling' OR outcome = 'irrevocable')
        RETURNING *
      ), logged AS (
        ${auditInsert} ${auditSelect} FROM ${auditUnnest(7)} WHERE EXISTS (SELECT FROM written)
      ), woken AS (
        SELECT pg_notify('${channel}', tenant || ' ' || task_id) FROM written
      )
      SELECT w.*, (SELECT count(*) FROM woken) AS woken FROM written w`,
      [lease.tenant, lease.leaseId, new Date(at), by, reason, error.slice(0, 500), ...auditColumns([event])],
    );
    return rows[0] && leaseFromRow(rows[0] as Row);
  });
}
