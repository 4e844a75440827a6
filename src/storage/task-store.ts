import type pg from 'pg';
import type { AuditEvent } from '../domain/audit.ts';
import type { CloseCause, Task } from '../domain/model.ts';
import type { InsertedTask, NewTask, TaskFilter, TaskStore } from '../domain/store.ts';
import type { Instant } from '../domain/time.ts';
import { atLockEpoch } from './lock-gate.ts';
import { guarded } from './pool.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest, taskFromRow } from './rows.ts';
import { taskById, taskByRequest, taskColumns, taskValues } from './task-rows.ts';
import { closeTree } from './close-tree.ts';
import { createStatusIndexes } from './status-indexes.ts';
import { insertBelow, moveDeadline } from './task-tree.ts';
import { isTreeSettled, listTree, treeTotals } from './tree-store.ts';

const at = (value: Instant | undefined) => (value === undefined ? null : new Date(value));

export function createTaskStore(pool: pg.Pool): TaskStore {
  const statusIndex = createStatusIndexes(pool);
  return {
    insert: async (task, events) =>
      await guarded(async () => insert(pool, task, await statusIndex(task.tenant), events)),
    insertBelow: async (task, events, above, limits) =>
      insertBelow(pool, task, await guarded(() => statusIndex(task.tenant)), events, above, limits),
    byRequest: (tenant, opener, requestId) => guarded(() => taskByRequest(pool, tenant, opener, requestId)),

    get: (tenant, taskId) => guarded(() => taskById(pool, tenant, taskId)),

    list: (filter) => list(pool, filter),
    tree: (task, page) => listTree(pool, task, page),
    treeTotals: (task) => treeTotals(pool, task),
    isTreeSettled: (task) => isTreeSettled(pool, task),

    pinAgent: (task, workload, event) =>
      changeOpenTask(pool, task, event, 'agent_workload = $3', 'agent_workload IS NULL', [workload]),

    extend: (task, deadline, event, ofChild) => moveDeadline(pool, task, deadline, event, ofChild),

    heartbeat: (task, due) => changeOpenTask(pool, task, undefined, 'heartbeat_due = $3', 'true', [at(due)]),

    close: (tenant, taskId, cause, now, event) => closeTree(pool, tenant, taskId, cause, now, event),

    due: (now, limit) =>
      guarded(async () => {
        // Index tasks_due.
        const { rows } = await pool.query<{ tenant: string; task_id: string; cause: CloseCause }>({
          name: 'due-tasks',
          text: `SELECT tenant, task_id, CASE WHEN deadline <= $1 THEN 'deadline' ELSE 'heartbeat_lost' END AS cause
            FROM tasks WHERE state = 'open' AND LEAST(deadline, heartbeat_due) <= $1
            ORDER BY LEAST(deadline, heartbeat_due), task_id LIMIT $2`,
          values: [at(now), limit],
        });
        return rows.map((row) => ({ tenant: row.tenant, taskId: row.task_id, cause: row.cause }));
      }),
  };
}

async function insert(
  pool: pg.Pool,
  task: NewTask,
  statusIndex: number,
  events: AuditEvent[],
): Promise<InsertedTask | { refused: 'locks' }> {
  return await guarded(async () => {
    // One statement, one transaction. Unique (tenant, opener, request_id) makes a retry find the first task.
    const { rows } = await pool.query({
      name: 'insert-task',
      text: `WITH written AS (
          INSERT INTO tasks (${taskColumns})
          SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::jsonb, $12::jsonb, $13::timestamptz, $14::timestamptz,
            $15::bigint, $16::timestamptz, $17::bigint, $18::jsonb
          WHERE ${atLockEpoch('$19')}
          ON CONFLICT (tenant, opener, request_id) DO NOTHING
          RETURNING *
        ), logged AS (
          ${auditInsert} ${auditSelect} FROM ${auditUnnest(20)} WHERE EXISTS (SELECT FROM written)
        )
        SELECT * FROM written`,
      values: [...taskValues(task, statusIndex), task.lockEpoch, ...auditColumns(events)],
    });
    if (rows[0]) return { task: taskFromRow(rows[0]), inserted: true, requestDigest: task.requestDigest };
    const existing = await taskByRequest(pool, task.tenant, task.opener, task.requestId);
    return existing === undefined ? { refused: 'locks' } : { ...existing, inserted: false };
  });
}

/** Changes one open task and writes its event in the same statement; undefined when it is not open (or `when` fails). */
async function changeOpenTask(
  pool: pg.Pool,
  task: Task,
  event: AuditEvent | undefined,
  change: string,
  when: string,
  values: unknown[],
): Promise<Task | undefined> {
  return await guarded(async () => {
    const { rows } = await pool.query(
      `WITH written AS (
        UPDATE tasks SET ${change} WHERE tenant = $1 AND task_id = $2 AND state = 'open' AND ${when} RETURNING *
      ), logged AS (
        ${auditInsert} ${auditSelect} FROM ${auditUnnest(3 + values.length)} WHERE EXISTS (SELECT FROM written)
      )
      SELECT * FROM written`,
      [task.tenant, task.taskId, ...values, ...auditColumns(event === undefined ? [] : [event])],
    );
    return rows[0] && taskFromRow(rows[0]);
  });
}

async function list(pool: pg.Pool, filter: TaskFilter) {
  return await guarded(async () => {
    // Task ids grow with time: the primary key gives newest first, and is the page token.
    const { rows } = await pool.query(
      `SELECT * FROM tasks
       WHERE tenant = $1 AND ($2::text IS NULL OR task_id < $2)
         AND (cardinality($3::text[]) = 0 OR state = ANY($3))
         AND ($4::text IS NULL OR opener = $4)
         AND ($5::text[] IS NULL OR agent = ANY($5))
         AND ($6::text IS NULL OR agent_workload IS NULL OR agent_workload = $6)
         AND ($7::text IS NULL OR parent_task_id = $7) AND ($8::text IS NULL OR root_task_id = $8)
         AND ($10::jsonb IS NULL OR labels @> $10)
       ORDER BY task_id DESC LIMIT $9`,
      [
        filter.tenant,
        filter.after ?? null,
        filter.states,
        filter.opener ?? null,
        filter.agents ?? null,
        filter.agentWorkload ?? null,
        filter.parentTaskId ?? null,
        filter.rootTaskId ?? null,
        filter.pageSize + 1,
        filter.labels === undefined ? null : JSON.stringify(filter.labels),
      ],
    );
    const items = rows.slice(0, filter.pageSize).map((row) => taskFromRow(row as Record<string, unknown>));
    return { items, next: rows.length > filter.pageSize ? items.at(-1)!.taskId : undefined };
  });
}
