import type pg from 'pg';
import type { AuditEvent } from '../domain/audit.ts';
import type { CloseCause, Task } from '../domain/model.ts';
import type { NewTask, TaskFilter, TaskStore } from '../domain/store.ts';
import type { Instant } from '../domain/time.ts';
import { guarded, transaction } from './pool.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest, taskFromRow } from './rows.ts';
import { notifyTask } from './wake.ts';

const at = (value: Instant | undefined) => (value === undefined ? null : new Date(value));

export function createTaskStore(pool: pg.Pool): TaskStore {
  return {
    insert: (task, events) => insert(pool, task, events),
    byRequest: (tenant, opener, requestId) => guarded(() => byRequest(pool, tenant, opener, requestId)),

    get: (tenant, taskId) =>
      guarded(async () => {
        const { rows } = await pool.query({
          name: 'get-task',
          text: 'SELECT * FROM tasks WHERE tenant = $1 AND task_id = $2',
          values: [tenant, taskId],
        });
        return rows[0] && taskFromRow(rows[0]);
      }),

    list: (filter) => list(pool, filter),

    pinAgent: (task, workload, event) =>
      changeOpenTask(pool, task, event, 'agent_workload = $3', 'agent_workload IS NULL', [workload]),

    extend: (task, deadline, event) =>
      changeOpenTask(pool, task, event, 'deadline = $3, epoch = epoch + 1', 'true', [at(deadline)]),

    heartbeat: (task, due) => changeOpenTask(pool, task, undefined, 'heartbeat_due = $3', 'true', [at(due)]),

    close: (tenant, taskId, cause, now, event) => close(pool, tenant, taskId, cause, now, event),

    due: (now, limit) =>
      guarded(async () => {
        // Index tasks_due.
        const { rows } = await pool.query<{ tenant: string; task_id: string; cause: CloseCause }>({
          name: 'due-tasks',
          text: `SELECT tenant, task_id, CASE WHEN deadline <= $1 THEN 'deadline' ELSE 'heartbeat_lost' END AS cause
            FROM tasks WHERE state = 'open' AND LEAST(deadline, heartbeat_due) <= $1
            ORDER BY LEAST(deadline, heartbeat_due) LIMIT $2`,
          values: [at(now), limit],
        });
        return rows.map((row) => ({ tenant: row.tenant, taskId: row.task_id, cause: row.cause }));
      }),
  };
}

async function insert(pool: pg.Pool, task: NewTask, events: AuditEvent[]) {
  return await guarded(async () => {
    // One statement, one transaction. Unique (tenant, opener, request_id) makes a retry find the first task.
    const { rows } = await pool.query({
      name: 'insert-task',
      text: `WITH written AS (
          INSERT INTO tasks (tenant, task_id, root_task_id, parent_task_id, request_id, request_digest, intent, agent, opener,
            agent_workload, tools, context, opened_at, deadline, heartbeat_ms, heartbeat_due)
          VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::jsonb, $12::jsonb, $13, $14, $15, $16)
          ON CONFLICT (tenant, opener, request_id) DO NOTHING
          RETURNING *
        ), logged AS (
          ${auditInsert} ${auditSelect} FROM ${auditUnnest(17)} WHERE EXISTS (SELECT FROM written)
        )
        SELECT * FROM written`,
      values: [
        task.tenant,
        task.taskId,
        task.rootTaskId,
        task.parentTaskId ?? null,
        task.requestId,
        task.requestDigest,
        task.intent,
        task.agent,
        task.opener,
        task.agentWorkload ?? null,
        JSON.stringify(task.tools),
        JSON.stringify(task.context),
        at(task.openedAt),
        at(task.deadline),
        task.heartbeatInterval ?? null,
        at(task.heartbeatInterval === undefined ? undefined : task.openedAt + task.heartbeatInterval),
        ...auditColumns(events),
      ],
    });
    if (rows[0]) return { task: taskFromRow(rows[0]), inserted: true, requestDigest: task.requestDigest };
    const existing = await byRequest(pool, task.tenant, task.opener, task.requestId);
    return { ...existing!, inserted: false };
  });
}

async function byRequest(pool: pg.Pool, tenant: string, opener: string, requestId: string) {
  const { rows } = await pool.query({
    name: 'task-by-request',
    text: 'SELECT * FROM tasks WHERE tenant = $1 AND opener = $2 AND request_id = $3',
    values: [tenant, opener, requestId],
  });
  const row = rows[0] as Record<string, unknown> | undefined;
  return row && { task: taskFromRow(row), requestDigest: row.request_digest as string };
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
       ORDER BY task_id DESC LIMIT $7`,
      [
        filter.tenant,
        filter.after ?? null,
        filter.states,
        filter.opener ?? null,
        filter.agents ?? null,
        filter.agentWorkload ?? null,
        filter.pageSize + 1,
      ],
    );
    const items = rows.slice(0, filter.pageSize).map((row) => taskFromRow(row as Record<string, unknown>));
    return { items, next: rows.length > filter.pageSize ? items.at(-1)!.taskId : undefined };
  });
}

/**
 * The close (design §5), one transaction: after its commit no replica can write a lease for the subtree, because every
 * write holds its task's row FOR SHARE and asks for `open`.
 */
async function close(
  pool: pg.Pool,
  tenant: string,
  taskId: string,
  cause: CloseCause,
  now: Instant,
  event: AuditEvent,
): Promise<{ task: Task; changed: boolean } | undefined> {
  return await transaction(pool, async (client) => {
    // Ordered, as the writer's gate is. Children that are closed already are passed through, not stopped at.
    const tree = await client.query<{ task_id: string; state: string }>({
      name: 'close-lock-tree',
      text: `WITH RECURSIVE tree AS (
          SELECT task_id FROM tasks WHERE tenant = $1 AND task_id = $2
          UNION ALL
          SELECT c.task_id FROM tasks c JOIN tree p ON c.tenant = $1 AND c.parent_task_id = p.task_id
        )
        SELECT t.task_id, t.state FROM tasks t
        WHERE t.tenant = $1 AND t.task_id IN (SELECT task_id FROM tree) ORDER BY t.tenant, t.task_id FOR UPDATE`,
      values: [tenant, taskId],
    });
    if (tree.rows.length === 0) return undefined;
    const open = tree.rows.filter((row) => row.state === 'open').map((row) => row.task_id);
    if (open.length > 0) {
      await client.query({
        name: 'close-tasks',
        // By the database's clock, which all replicas share: another one may be the next to ask how long ago that was.
        text: `UPDATE tasks SET state = 'closing', epoch = epoch + 1, closed_at = clock_timestamp(),
            close_cause = CASE WHEN task_id = $3 THEN $4 ELSE 'parent_closed' END
          WHERE tenant = $1 AND task_id = ANY($2)`,
        values: [tenant, open, taskId, cause],
      });
      // One feed entry per task that has self-contained tokens alive (their handle is empty): it kills them all.
      await client.query({
        name: 'close-revocations',
        text: `INSERT INTO revocations (tenant, task_id, revoked_at, forget_at)
          SELECT tenant, task_id, clock_timestamp(), max(expires_at) FROM leases
          WHERE tenant = $1 AND task_id = ANY($2) AND handle = '' AND state <> 'settled' AND expires_at > $3
          GROUP BY tenant, task_id`,
        values: [tenant, open, at(now)],
      });
      // A pending lease keeps its time: the issue that is under way settles it, or the end of its attempt does.
      await client.query({
        name: 'close-leases',
        text: `UPDATE leases SET settle_at = LEAST(settle_at, $3), settle_cause = COALESCE(settle_cause, 'closed'), state = 'settling'
          WHERE tenant = $1 AND task_id = ANY($2) AND state = 'active'`,
        values: [tenant, open, at(now)],
      });
      const events = open.map((id) => ({
        ...event,
        taskId: id,
        detail: id === taskId ? event.detail : { ...event.detail, cause: 'parent_closed' },
      }));
      await client.query({
        name: 'close-events',
        text: `${auditInsert} ${auditSelect} FROM ${auditUnnest(1)}`,
        values: auditColumns(events),
      });
      await notifyTask(client, tenant, taskId);
    }
    const { rows } = await client.query({
      name: 'get-task',
      text: 'SELECT * FROM tasks WHERE tenant = $1 AND task_id = $2',
      values: [tenant, taskId],
    });
    return { task: taskFromRow(rows[0] as Record<string, unknown>), changed: open.length > 0 };
  });
}
