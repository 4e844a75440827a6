import type pg from 'pg';
import type { EvidenceStore, EvidenceType } from '../domain/evidence.ts';
import type { EventIds } from './event-ids.ts';
import { guarded } from './pool.ts';

/** Each by an index that leads with (tenant, task_id). A lease's handle is for the broker and its targets alone. */
const sources: Record<EvidenceType, { key: string; from: string; record: string; withTop?: string }> = {
  task: { key: 'task_id', from: 'tasks r', record: 'to_jsonb(r)' },
  lease: { key: 'lease_id', from: 'leases r', record: `to_jsonb(r) - 'handle'` },
  approval: {
    key: 'approval_id',
    from: 'approvals r',
    record: `to_jsonb(r) || jsonb_build_object(
      'votes', (SELECT COALESCE(jsonb_agg(to_jsonb(v) ORDER BY v.voted_at, v.approver), '[]') FROM approval_votes v
        WHERE v.tenant = r.tenant AND v.approval_id = r.approval_id),
      'uses', (SELECT COALESCE(jsonb_agg(to_jsonb(u) ORDER BY u.used_at, u.lease_id), '[]') FROM approval_uses u
        WHERE u.tenant = r.tenant AND u.approval_id = r.approval_id))`,
    withTop: `r.approval_id IN (
      SELECT a.approval_id FROM approvals a WHERE a.tenant = $1 AND a.task_id = ANY($2)
      UNION SELECT u.approval_id FROM leases l JOIN approval_uses u USING (tenant, lease_id)
      WHERE l.tenant = $1 AND l.task_id = $4)`,
  },
  call: { key: 'call_id', from: 'tool_calls r', record: 'to_jsonb(r)' },
  // Without its number, in whose place its id is put.
  event: {
    key: 'event_id',
    from: 'audit_events r',
    record: `json_build_object('tenant', r.tenant, 'kind', r.kind, 'at', r.at, 'actor', r.actor, 'task_id', r.task_id,
      'lease_id', r.lease_id, 'detail', r.detail)`,
  },
};

const pageSize = 500;

export function createEvidenceStore(pool: pg.Pool, idsOf: (tenant: string) => Promise<EventIds>): EvidenceStore {
  return {
    tree: (tenant, taskId, limit) =>
      guarded(async () => {
        // Bounded in depth as well: a row that somebody tampered with cannot make it go round for ever.
        const { rows } = await pool.query<{ task_id: string }>(
          `WITH RECURSIVE tree AS (
             SELECT task_id, 0 AS depth FROM tasks WHERE tenant = $1 AND task_id = $2
             UNION ALL
             SELECT c.task_id, p.depth + 1 FROM tree p JOIN tasks c ON c.tenant = $1 AND c.parent_task_id = p.task_id
             WHERE p.depth < 32
           ) SELECT task_id FROM tree LIMIT $3`,
          [tenant, taskId, limit],
        );
        return rows.map((row) => row.task_id);
      }),

    rows: async function* (tenant, type, taskIds, top) {
      const { key, from, record, withTop } = sources[type];
      const which = top === undefined || withTop === undefined ? undefined : { where: withTop, values: [top] };
      const { where, values } = which ?? { where: 'r.task_id = ANY($2)', values: [] };
      const next = 4 + values.length;
      let after: [task: string, key: string] | undefined;
      for (;;) {
        const { rows } = await guarded(() =>
          pool.query<{ task: string; key: string; record: string }>(
            `SELECT r.task_id AS task, r.${key} AS key, (${record})::text AS record FROM ${from}
             WHERE r.tenant = $1 AND ${where}
               ${after === undefined ? '' : `AND (r.task_id, r.${key}) > ($${next}, $${next + 1})`}
             ORDER BY r.task_id, r.${key} LIMIT $3`,
            [tenant, taskIds, pageSize, ...values, ...(after ?? [])],
          ),
        );
        // One object to a line: a value's own line breaks are escaped in JSON, spaces between values are not needed.
        const lines = rows.map((row) => row.record.replace(/\s*\n\s*/g, ' '));
        if (lines.length > 0) yield type === 'event' ? await withIds(tenant, rows, lines) : lines;
        if (rows.length < pageSize) return;
        const last = rows.at(-1)!;
        after = [last.task, last.key];
      }
    },
  };

  async function withIds(
    tenant: string,
    rows: readonly { key: string }[],
    lines: readonly string[],
  ): Promise<string[]> {
    const ids = await guarded(() => idsOf(tenant));
    const shown = ids.hide(rows.map(({ key }) => key));
    return lines.map((line, index) => `{"event_id":"${shown[index]!}",${line.slice(1)}`);
  }
}
