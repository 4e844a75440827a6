import type pg from 'pg';
import type { AuditStore } from '../domain/store.ts';
import { guarded } from './pool.ts';
import { auditFromRow } from './rows.ts';

export function createAuditStore(pool: pg.Pool): AuditStore {
  return {
    ofTask: (tenant, taskId, pageSize, after) =>
      guarded(async () => {
        // The primary key (tenant, task_id, event_id).
        const { rows } = await pool.query({
          name: 'audit-of-task',
          text: `SELECT * FROM audit_events WHERE tenant = $1 AND task_id = $2 AND event_id > $3
            ORDER BY event_id LIMIT $4`,
          values: [tenant, taskId, after ?? '0', pageSize + 1],
        });
        const items = rows.slice(0, pageSize).map((row) => auditFromRow(row as Record<string, unknown>));
        return { items, next: rows.length > pageSize ? items.at(-1)!.eventId : undefined };
      }),
  };
}
