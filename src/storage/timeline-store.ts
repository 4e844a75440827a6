import type pg from 'pg';
import type { TimelineStore } from '../domain/timeline.ts';
import type { EventIds } from './event-ids.ts';
import { guarded } from './pool.ts';
import { auditFromRow } from './rows.ts';

type Row = Record<string, unknown>;

export function createTimelineStore(pool: pg.Pool, idsOf: (tenant: string) => Promise<EventIds>): TimelineStore {
  return {
    ofTask: (tenant, taskId, tree, pageSize, after) =>
      guarded(async () => {
        const ids = await idsOf(tenant);
        const { rows } = await pool.query({
          name: 'timeline',
          // Each task's next events by the primary key of audit_events, then all of them in order. Bounded in depth and
          // number, so that a row that somebody tampered with cannot make it go round for ever.
          text: `WITH RECURSIVE tree AS (
              SELECT task_id, 0 AS depth FROM tasks WHERE tenant = $1 AND task_id = $2
              UNION ALL
              SELECT c.task_id, p.depth + 1 FROM tree p JOIN tasks c ON c.tenant = $1 AND c.parent_task_id = p.task_id
              WHERE $3 AND p.depth < 32
            )
            SELECT e.*, l.policy_rule, u.approval_id
            FROM (SELECT task_id FROM tree LIMIT 10000) t
            CROSS JOIN LATERAL (
              SELECT * FROM audit_events e
              WHERE e.tenant = $1 AND e.task_id = t.task_id AND e.event_id > $4 ORDER BY e.event_id LIMIT $5
            ) e
            LEFT JOIN leases l ON l.tenant = e.tenant AND l.lease_id = e.lease_id AND l.task_id = e.task_id
            LEFT JOIN approval_uses u ON u.tenant = e.tenant AND u.lease_id = l.lease_id
            ORDER BY e.event_id LIMIT $5`,
          values: [tenant, taskId, tree, after === undefined ? '0' : ids.reveal(after), pageSize + 1],
        });
        const shown = ids.hide(rows.map((row: { event_id: string }) => row.event_id));
        const items = rows.slice(0, pageSize).map((row: Row, index) => ({
          ...auditFromRow(row, shown[index]!),
          approvalId: (row['approval_id'] as string | null) ?? undefined,
          policyRule: (row['policy_rule'] as string | null) ?? undefined,
        }));
        return { items, next: rows.length > pageSize ? items.at(-1)!.eventId : undefined };
      }),
  };
}
