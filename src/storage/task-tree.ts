import type pg from 'pg';
import type { ChildRefusal } from '../domain/delegation/child.ts';
import type { AuditEvent } from '../domain/audit.ts';
import type { Task } from '../domain/model.ts';
import type { InsertedTask, NewTask } from '../domain/store.ts';
import type { Instant } from '../domain/time.ts';
import { atLockEpoch } from './lock-gate.ts';
import { transaction } from './pool.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest, taskFromRow } from './rows.ts';
import { taskByRequest, taskColumns, taskValues } from './task-rows.ts';

type Client = Pick<pg.ClientBase, 'query'>;
type Row = Record<string, unknown>;

/**
 * What concerns a task and those below it. Locks are taken in the order of ids everywhere, and a child's id is above its
 * parent's, so that a tree is locked from the top and nobody waits for each other:
 *
 * - A child is written while all above it are held FOR SHARE, if they are open then.
 * - Whoever ends or shortens a task takes its row first. What was being written below it is written by then, and the
 *   next statement sees it; what comes later finds the task as it is now.
 */

/**
 * Locks the task's row, then those of the open tasks below it: nothing is added to the subtree until the commit. Answers
 * with the ids of what is open, itself included; undefined when there is no such task.
 */
export async function lockSubtree(client: Client, tenant: string, taskId: string): Promise<string[] | undefined> {
  const top = await client.query<{ open: boolean }>({
    name: 'tree-lock-top',
    text: 'SELECT closed_at IS NULL AS open FROM tasks WHERE tenant = $1 AND task_id = $2 FOR UPDATE',
    values: [tenant, taskId],
  });
  if (top.rows[0] === undefined) return undefined;
  // A statement of its own, so that it sees what was committed while the first one waited. Tasks that are closed already
  // are passed through, not stopped at. Index tasks_children.
  const { rows } = await client.query<{ task_id: string }>({
    name: 'tree-lock',
    text: `WITH RECURSIVE tree AS (
        SELECT task_id, closed_at FROM tasks WHERE tenant = $1 AND parent_task_id = $2
        UNION ALL
        SELECT c.task_id, c.closed_at FROM tree p JOIN tasks c ON c.tenant = $1 AND c.parent_task_id = p.task_id
      )
      SELECT t.task_id FROM (SELECT task_id FROM tree WHERE closed_at IS NULL ORDER BY task_id) w
      CROSS JOIN LATERAL (
        SELECT t.task_id FROM tasks t WHERE t.tenant = $1 AND t.task_id = w.task_id AND t.closed_at IS NULL FOR UPDATE
      ) t`,
    values: [tenant, taskId],
  });
  const below = rows.map((row) => row.task_id);
  return top.rows[0].open ? [taskId, ...below] : below;
}

/**
 * Whether a task that is locked has come to its deadline, though no worker has closed it yet: it has ended, and nothing
 * brings it back. By the database's clock, which also decides what is issued for it.
 */
export async function isPastDeadline(client: Client, tenant: string, taskId: string): Promise<boolean> {
  const { rows } = await client.query<{ past: boolean }>({
    name: 'past-deadline',
    text: 'SELECT deadline <= clock_timestamp() AS past FROM tasks WHERE tenant = $1 AND task_id = $2',
    values: [tenant, taskId],
  });
  return rows[0]?.past ?? true;
}

export async function insertBelow(
  pool: pg.Pool,
  task: NewTask,
  statusIndex: number,
  events: AuditEvent[],
  above: readonly Pick<Task, 'taskId'>[],
  limits: { openChildren: number; openInTree: number },
): Promise<InsertedTask | { refused: ChildRefusal | 'locks' }> {
  return await transaction(pool, async (client) => {
    // One after the other for a parent: the count of its children holds.
    await client.query({
      name: 'child-turn',
      text: `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`,
      values: [`children ${task.tenant} ${task.parentTaskId!}`],
    });
    const values = taskValues(task, statusIndex);
    const first = values.length + 1;
    // Unique (tenant, opener, request_id) makes a retry find the first task. Indexes tasks_children and tasks_tree.
    const { rows } = await client.query<Row & Standing>({
      name: 'insert-child',
      text: `WITH above AS MATERIALIZED (
          SELECT t.state, t.deadline FROM tasks t WHERE t.tenant = $1 AND t.task_id = ANY($${first}::text[])
          ORDER BY t.tenant, t.task_id FOR SHARE
        ), standing AS MATERIALIZED (
          SELECT
            ${atLockEpoch(`$${first + 3}`)} AS unlocked,
            (SELECT count(*) FROM above a WHERE a.state = 'open' AND a.deadline > clock_timestamp())
              = cardinality($${first}::text[]) AS open,
            (SELECT bool_and(a.deadline >= $14) FROM above a) AS within,
            (SELECT count(*) < $${first + 1} FROM tasks c
              WHERE c.tenant = $1 AND c.parent_task_id = $4 AND c.state = 'open') AS room,
            (SELECT count(*) < $${first + 2} FROM (
              SELECT FROM tasks c WHERE c.tenant = $1 AND c.root_task_id = $3 AND c.closed_at IS NULL
              LIMIT $${first + 2}) tree) AS room_in_tree
        ), written AS (
          INSERT INTO tasks (${taskColumns})
          SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::jsonb, $12::jsonb, $13::timestamptz, $14::timestamptz,
            $15::bigint, $16::timestamptz, $17::bigint, $18::jsonb
          FROM standing s WHERE s.unlocked AND s.open AND s.within AND s.room AND s.room_in_tree
          ON CONFLICT (tenant, opener, request_id) DO NOTHING
          RETURNING *
        ), logged AS (
          ${auditInsert} ${auditSelect} FROM ${auditUnnest(first + 4)} WHERE EXISTS (SELECT FROM written)
        )
        SELECT s.*, w.* FROM standing s LEFT JOIN written w ON true`,
      values: [
        ...values,
        above.map(({ taskId }) => taskId),
        limits.openChildren,
        limits.openInTree,
        task.lockEpoch,
        ...auditColumns(events),
      ],
    });
    const row = rows[0]!;
    if (row['task_id'] !== null) {
      return { task: taskFromRow(row), inserted: true, requestDigest: task.requestDigest };
    }
    const existing = await taskByRequest(client, task.tenant, task.opener, task.requestId);
    if (existing !== undefined) return { ...existing, inserted: false };
    return { refused: refusalOf(row) };
  });
}

interface Standing {
  unlocked: boolean;
  open: boolean;
  within: boolean;
  room: boolean;
}

function refusalOf({ unlocked, open, within, room }: Standing): ChildRefusal | 'locks' {
  if (!unlocked) return 'locks';
  if (!open) return 'closed';
  if (!within) return 'deadline';
  return room ? 'tree' : 'children';
}

/** A later deadline stays within the parent's; an earlier one is that of all below which would last longer. */
export async function moveDeadline(
  pool: pg.Pool,
  task: Task,
  deadline: Instant,
  event: AuditEvent,
  ofChild: (taskId: string, from: Instant) => AuditEvent,
): Promise<Task | { beyond: Instant } | { earliest: Instant } | undefined> {
  return await transaction(pool, async (client) => {
    const { tenant, taskId, parentTaskId } = task;
    if (parentTaskId !== undefined) {
      const { rows } = await client.query<{ deadline: Date }>({
        name: 'parent-deadline',
        text: 'SELECT deadline FROM tasks WHERE tenant = $1 AND task_id = $2 FOR SHARE',
        values: [tenant, parentTaskId],
      });
      const latest = rows[0]?.deadline.getTime() ?? 0;
      if (deadline > latest) return { beyond: latest };
    }
    const open = (await lockSubtree(client, tenant, taskId)) ?? [];
    if (open[0] !== taskId || (await isPastDeadline(client, tenant, taskId))) return undefined;
    const earliest = await lastUnstoppable(client, tenant, open, deadline);
    if (earliest !== undefined) return { earliest };
    const { rows } = await client.query<Row & { task_id: string; was: Date }>({
      name: 'move-deadlines',
      text: `UPDATE tasks t SET deadline = $3, epoch = t.epoch + 1 FROM tasks w
        WHERE t.tenant = $1 AND t.task_id = ANY($4) AND (t.task_id = $2 OR t.deadline > $3)
          AND w.tenant = t.tenant AND w.task_id = t.task_id
        RETURNING t.*, w.deadline AS was`,
      values: [tenant, taskId, new Date(deadline), open],
    });
    const below = rows.filter((row) => row.task_id !== taskId);
    const events = [event, ...below.map((row) => ofChild(row.task_id, row.was.getTime()))];
    await client.query({
      name: 'insert-events',
      text: `${auditInsert} ${auditSelect} FROM ${auditUnnest(1)}`,
      values: auditColumns(events),
    });
    return taskFromRow(rows.find((row) => row.task_id === taskId)!);
  });
}

/**
 * When the last credential ends that nothing can end before its time, if that is after `deadline`. The tasks are locked, so
 * what was written is seen and nothing more is written. A pending one is not activated beyond a new deadline; a returned one
 * is settled and works all the same.
 */
async function lastUnstoppable(
  client: pg.PoolClient,
  tenant: string,
  tasks: readonly string[],
  deadline: Instant,
): Promise<Instant | undefined> {
  const { rows } = await client.query<{ latest: Date | null }>({
    name: 'last-unstoppable-lease',
    text: `SELECT max(expires_at) AS latest FROM leases
      WHERE tenant = $1 AND task_id = ANY($2) AND revocation_kind <> 'immediate' AND expires_at > $3 AND state <> 'pending'
        AND (state <> 'settled' OR outcome = 'bounded') AND settle_cause IS DISTINCT FROM 'abandoned'`,
    values: [tenant, tasks, new Date(deadline)],
  });
  return rows[0]?.latest?.getTime();
}
