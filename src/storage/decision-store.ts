import type pg from 'pg';
import type { DecisionBounds, DecisionStore, RawDecision } from '../domain/explanations.ts';
import { guarded } from './pool.ts';
import { taskFromRow } from './rows.ts';

type Row = Record<string, unknown>;

/** As the index audit_decisions has it. */
const id = `(detail ->> 'decision_id') COLLATE "C"`;
const columns = `detail ->> 'decision_id' AS decision_id, at, actor, task_id, lease_id, detail::text AS detail`;
const maxCount = 1_000_000;

export function createDecisionStore(pool: pg.Pool): DecisionStore {
  return {
    byId: (tenant, decisionId) =>
      guarded(async () => {
        const { rows } = await pool.query(
          `SELECT ${columns} FROM audit_events WHERE tenant = $1 AND kind = 'decision.made' AND ${id} = $2 LIMIT 1`,
          [tenant, decisionId],
        );
        return rows[0] && decisionFromRow(rows[0] as Row);
      }),

    ofLease: (tenant, leaseId) =>
      guarded(async () => {
        // The primary keys of leases and audit_events.
        const { rows } = await pool.query(
          `SELECT ${columns} FROM audit_events WHERE tenant = $1 AND lease_id = $2 AND kind = 'decision.made'
             AND task_id = (SELECT l.task_id FROM leases l WHERE l.tenant = $1 AND l.lease_id = $2)
           ORDER BY event_id LIMIT 1`,
          [tenant, leaseId],
        );
        return rows[0] && decisionFromRow(rows[0] as Row);
      }),

    page: (bounds, after, limit) =>
      guarded(async () => {
        const { rows } = await pool.query(
          `SELECT ${columns} FROM audit_events
           WHERE tenant = $1 AND kind = 'decision.made' AND ${id} > $2 AND ${id} < $3
             AND ($4::text IS NULL OR detail ->> 'tool' = $4)
           ORDER BY ${id} LIMIT $5`,
          [bounds.tenant, after ?? idAt(bounds.since), idAt(bounds.until), bounds.tool ?? null, limit],
        );
        return rows.map((row) => decisionFromRow(row as Row));
      }),

    count: (bounds: DecisionBounds) =>
      guarded(async () => {
        const { rows } = await pool.query<{ count: number }>(
          `SELECT count(*)::int AS count FROM (
             SELECT FROM audit_events WHERE tenant = $1 AND kind = 'decision.made' AND ${id} > $2 AND ${id} < $3 LIMIT $4
           ) decisions`,
          [bounds.tenant, idAt(bounds.since), idAt(bounds.until), maxCount],
        );
        return rows[0]!.count;
      }),

    tasks: (tenant, taskIds) =>
      guarded(async () => {
        if (taskIds.length === 0) return [];
        const { rows } = await pool.query('SELECT * FROM tasks WHERE tenant = $1 AND task_id = ANY($2)', [
          tenant,
          taskIds,
        ]);
        return rows.map((row) => taskFromRow(row as Row));
      }),
  };
}

/** Ids begin with the millisecond (RFC 9562 §5.7): the least that a decision of that time can have. */
function idAt(instant: number): string {
  return `dec_${Math.max(0, Math.floor(instant)).toString(16).padStart(12, '0')}`;
}

function decisionFromRow(row: Row): RawDecision {
  return {
    decisionId: row.decision_id as string,
    at: (row.at as Date).getTime(),
    workload: row.actor as string,
    taskId: row.task_id as string,
    leaseId: row.lease_id === null ? undefined : (row.lease_id as string),
    detail: row.detail as string,
  };
}
