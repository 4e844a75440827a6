import type pg from 'pg';
import type { ApprovalCount, Counted, Denial, ReportStore, Use } from '../domain/report.ts';
import { guarded } from './pool.ts';

export function createReportStore(pool: pg.Pool): ReportStore {
  const query = async <T extends pg.QueryResultRow>(text: string, values: unknown[]): Promise<T[]> =>
    await guarded(async () => (await pool.query<T>(text, values)).rows);

  return {
    uses: (tenant, since) =>
      query<Use>(
        `SELECT agent, tool, tier, (count(*) FILTER (WHERE renewal_count = 0))::int AS issued,
           (count(*) FILTER (WHERE renewal_count > 0))::int AS renewed
         FROM leases WHERE tenant = $1 AND lease_id >= $2 AND issued_at >= $3 GROUP BY agent, tool, tier`,
        [tenant, idAt('lse', since), new Date(since)],
      ),

    tasksByAgent: async (tenant, since) => {
      const rows = await query<{ agent: string; count: number }>(
        'SELECT agent, count(*)::int AS count FROM tasks WHERE tenant = $1 AND task_id >= $2 GROUP BY agent',
        [tenant, idAt('tsk', since)],
      );
      return new Map(rows.map(({ agent, count }) => [agent, count]));
    },

    // Index audit_decisions.
    denials: (tenant, since, limit) =>
      query<Denial>(
        `SELECT t.agent, e.detail ->> 'tool' AS tool, e.detail ->> 'tier' AS tier, e.detail ->> 'effect' AS effect,
           e.detail ->> 'rule' AS rule, count(*)::int AS count
         FROM audit_events e JOIN tasks t USING (tenant, task_id)
         WHERE e.tenant = $1 AND e.kind = 'decision.made' AND (e.detail ->> 'decision_id') COLLATE "C" >= $2
           AND e.detail ->> 'effect' <> 'allow' AND e.detail ->> 'reevaluation' IS NULL
         GROUP BY 1, 2, 3, 4, 5 ORDER BY count DESC, 1, 2, 3, 4, 5 LIMIT $3`,
        [tenant, idAt('dec', since), limit],
      ),

    approvals: async (tenant, since) => {
      const rows = await query<{ outcome: string; count: number; latency: number | null }>(
        `SELECT CASE WHEN state IN ('used', 'expired') THEN 'approved' ELSE state END AS outcome, count(*)::int AS count,
           (percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM decided_at - requested_at)))::float8 AS latency
         FROM approvals WHERE tenant = $1 AND approval_id >= $2 GROUP BY 1 ORDER BY 1`,
        [tenant, idAt('apr', since)],
      );
      return rows.map(({ outcome, count, latency }): ApprovalCount => ({
        outcome,
        count,
        // Nobody decided what timed out.
        medianLatency:
          latency === null || outcome === 'timed_out' || outcome === 'cancelled'
            ? undefined
            : Math.round(latency * 1_000),
      }));
    },

    leaseOutcomes: (tenant, since) =>
      query<Counted>(
        `SELECT COALESCE(outcome, state) AS outcome, COALESCE(settle_cause, '') AS cause, count(*)::int AS count
         FROM leases WHERE tenant = $1 AND lease_id >= $2 GROUP BY 1, 2 ORDER BY 1, 2`,
        [tenant, idAt('lse', since)],
      ),

    taskOutcomes: (tenant, since) =>
      query<Counted>(
        `SELECT state AS outcome, COALESCE(close_cause, '') AS cause, count(*)::int AS count
         FROM tasks WHERE tenant = $1 AND task_id >= $2 GROUP BY 1, 2 ORDER BY 1, 2`,
        [tenant, idAt('tsk', since)],
      ),
  };
}

/** Ids begin with their millisecond (RFC 9562 §5.7), so the primary keys are in the order of time. */
function idAt(prefix: string, instant: number): string {
  return `${prefix}_${Math.max(0, Math.floor(instant)).toString(16).padStart(12, '0')}`;
}
