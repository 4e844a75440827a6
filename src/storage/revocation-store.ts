import type pg from 'pg';
import type { RevocationStore } from '../domain/store.ts';
import { guarded } from './pool.ts';

export function createRevocationStore(pool: pg.Pool): RevocationStore {
  return {
    read: (tenant, position, since, limit) =>
      guarded(async () => {
        const { rows } = await pool.query({
          name: 'read-revocations',
          text: `SELECT * FROM revocations WHERE tenant = $1 AND (position > $2 OR revoked_at >= $3)
            ORDER BY position LIMIT $4`,
          values: [tenant, position, new Date(since), limit],
        });
        return rows.map((row: Record<string, unknown>) => ({
          position: Number(row.position),
          tenant: row.tenant as string,
          taskId: (row.task_id as string | null) ?? undefined,
          leaseId: (row.lease_id as string | null) ?? undefined,
          revokedAt: (row.revoked_at as Date).getTime(),
          forgetAt: (row.forget_at as Date).getTime(),
        }));
      }),

    revokedIndexes: (listNumber, listSize, now) =>
      guarded(async () => {
        // Index tasks_status. A task whose tokens have all run out needs no mark any more.
        const { rows } = await pool.query<{ status_index: string }>({
          name: 'revoked-indexes',
          text: `SELECT t.status_index FROM tasks t JOIN revocations r ON r.tenant = t.tenant AND r.task_id = t.task_id
            WHERE t.state <> 'open' AND t.status_index >= $1 AND t.status_index < $2 AND r.forget_at > $3`,
          values: [listNumber * listSize, (listNumber + 1) * listSize, new Date(now)],
        });
        return rows.map((row) => Number(row.status_index) - listNumber * listSize);
      }),
  };
}
