import type pg from 'pg';
import type { AuditStore } from '../domain/store.ts';
import type { EventIds } from './event-ids.ts';
import { guarded } from './pool.ts';
import { auditFromRow } from './rows.ts';

export function createAuditStore(pool: pg.Pool, idsOf: (tenant: string) => Promise<EventIds>): AuditStore {
  return {
    ofTask: (tenant, taskId, pageSize, after) =>
      guarded(async () => {
        const ids = await idsOf(tenant);
        // The primary key (tenant, task_id, event_id).
        const { rows } = await pool.query({
          name: 'audit-of-task',
          text: `SELECT * FROM audit_events WHERE tenant = $1 AND task_id = $2 AND event_id > $3
            ORDER BY event_id LIMIT $4`,
          values: [tenant, taskId, after === undefined ? '0' : ids.reveal(after), pageSize + 1],
        });
        const shown = ids.hide(rows.map((row: { event_id: string }) => row.event_id));
        const items = rows
          .slice(0, pageSize)
          .map((row, index) => auditFromRow(row as Record<string, unknown>, shown[index]!));
        return { items, next: rows.length > pageSize ? items.at(-1)!.eventId : undefined };
      }),
  };
}
