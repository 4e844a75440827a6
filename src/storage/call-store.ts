import type pg from 'pg';
import type { CallFilter, CallStore } from '../domain/calls/store.ts';
import type { CallHop, ToolCall } from '../domain/calls/model.ts';
import type { Lease } from '../domain/model.ts';
import { callFromRow, hopFromRow } from './call-rows.ts';
import { createCallWriter, type CallWriterOptions } from './call-writer.ts';
import { GroupCommit } from './group-commit.ts';
import { guarded } from './pool.ts';
import { leaseFromRow } from './rows.ts';

type Row = Record<string, unknown>;

interface Key {
  tenant: string;
  id: string;
}

export function createCallStore(pool: pg.Pool, options: CallWriterOptions): CallStore & { close(): Promise<void> } {
  const writer = createCallWriter(options);
  // Look-ups that wait are one statement, as writes are. By primary key, once for each.
  const byKey = <T>(name: string, text: string, id: (item: T) => string, from: (row: Row) => T) =>
    new GroupCommit<Key, T | undefined>({
      tenantOf: ({ tenant }) => tenant,
      maxBatch: 256,
      maxQueue: 8_192,
      isRefusal: () => false,
      flush: async (keys) => {
        const values = [keys.map(({ tenant }) => tenant), keys.map((key) => key.id)];
        const { rows } = await pool.query({ name, text, values });
        const found = new Map(
          rows.map((row) => [`${(row as Row).tenant as string} ${id(from(row as Row))}`, row as Row]),
        );
        return keys.map((key) => {
          const row = found.get(`${key.tenant} ${key.id}`);
          return row && from(row);
        });
      },
    });
  const keys = 'unnest($1::text[], $2::text[]) AS k(tenant, id)';
  const leases = byKey<Lease>(
    'leases-by-id',
    `SELECT l.* FROM ${keys} CROSS JOIN LATERAL (SELECT * FROM leases l WHERE l.tenant = k.tenant AND l.lease_id = k.id) l`,
    ({ leaseId }) => leaseId,
    leaseFromRow,
  );
  const calls = byKey<ToolCall>(
    'calls-by-id',
    `SELECT c.* FROM ${keys} CROSS JOIN LATERAL (
      SELECT c.*, t.intent FROM tool_calls c JOIN tasks t ON t.tenant = c.tenant AND t.task_id = c.task_id
      WHERE c.tenant = k.tenant AND c.call_id = k.id) c`,
    ({ callId }) => callId,
    callFromRow,
  );

  const chains = byKey<{ taskId: string; hops: CallHop[] }>(
    'chains-of-tasks',
    // Bounded, so that a row that somebody tampered with cannot make it go round for ever.
    `SELECT k.tenant, k.id, c.hops FROM ${keys} CROSS JOIN LATERAL (
      WITH RECURSIVE up AS (
        SELECT parent_task_id, 0 AS depth FROM tasks WHERE tenant = k.tenant AND task_id = k.id
        UNION ALL
        SELECT t.parent_task_id, up.depth + 1 FROM up JOIN tasks t ON t.tenant = k.tenant AND t.task_id = up.parent_task_id
        WHERE up.depth < 32
      )
      SELECT json_agg(json_build_object(
        'task_id', t.task_id, 'agent', t.agent, 'workload', t.agent_workload, 'opener', t.opener) ORDER BY up.depth) AS hops
      FROM up JOIN tasks t ON t.tenant = k.tenant AND t.task_id = up.parent_task_id) c`,
    ({ taskId }) => taskId,
    (row) => ({
      taskId: row.id as string,
      hops: ((row.hops ?? []) as Parameters<typeof hopFromRow>[0][]).map(hopFromRow),
    }),
  );

  return {
    lease: (tenant, id) => guarded(() => leases.write({ tenant, id })),
    get: (tenant, id) => guarded(() => calls.write({ tenant, id })),
    insert: writer.insert,
    end: writer.end,

    chain: async (task) => {
      const found = await guarded(() => chains.write({ tenant: task.tenant, id: task.taskId }));
      return found?.hops ?? [];
    },

    byRequest: (tenant, taskId, reportedBy, requestId) =>
      guarded(async () => {
        const { rows } = await pool.query({
          name: 'call-by-request',
          text: `SELECT c.*, t.intent FROM tool_calls c JOIN tasks t ON t.tenant = c.tenant AND t.task_id = c.task_id
            WHERE c.tenant = $1 AND c.task_id = $2 AND c.reported_by = $3 AND c.request_id = $4`,
          values: [tenant, taskId, reportedBy, requestId],
        });
        return rows[0] && callFromRow(rows[0] as Row);
      }),

    list: (filter) => list(pool, filter),
    close: () => writer.close(),
  };
}

/** Identifiers begin with the time in milliseconds (UUIDv7): a time is a place among them. */
function firstIdAt(at: number): string {
  return `cal_${Math.max(0, at).toString(16).padStart(12, '0')}`;
}

async function list(pool: pg.Pool, filter: CallFilter) {
  return await guarded(async () => {
    const { rows } = await pool.query(
      `SELECT c.*, t.intent FROM (
         SELECT * FROM tool_calls
         WHERE tenant = $1 AND ($2::text IS NULL OR call_id < $2)
           AND ($3::text IS NULL OR task_id = $3)
           AND ($4::text IS NULL OR agent = $4)
           AND ($5::text IS NULL OR tool = $5)
           AND ($6::text IS NULL OR call_id >= $6)
           AND ($7::text IS NULL OR call_id < $7)
           AND (NOT $8 OR violations <> '{}')
         ORDER BY call_id DESC LIMIT $9
       ) c JOIN tasks t ON t.tenant = c.tenant AND t.task_id = c.task_id
       ORDER BY c.call_id DESC`,
      [
        filter.tenant,
        filter.after ?? null,
        filter.taskId ?? null,
        filter.agent ?? null,
        filter.tool ?? null,
        filter.since === undefined ? null : firstIdAt(filter.since),
        filter.until === undefined ? null : firstIdAt(filter.until),
        filter.violationsOnly,
        filter.pageSize + 1,
      ],
    );
    const items = rows.slice(0, filter.pageSize).map((row) => callFromRow(row as Row));
    return { items, next: rows.length > filter.pageSize ? items.at(-1)!.callId : undefined };
  });
}
