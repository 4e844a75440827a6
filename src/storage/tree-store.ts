import type pg from 'pg';
import type { LeaseSummary, Task, TaskNode } from '../domain/model.ts';
import type { Page, TreeTotals } from '../domain/store.ts';
import { guarded } from './pool.ts';
import { nodeTaskFromRow } from './rows.ts';

type Row = Record<string, unknown>;

/** A task and all below it, through those that are closed. Index tasks_children. */
const tree = `WITH RECURSIVE tree AS (
    SELECT task_id, settled_at, 0 AS depth FROM tasks WHERE tenant = $1 AND task_id = $2
    UNION ALL
    SELECT c.task_id, c.settled_at, p.depth + 1
    FROM tree p JOIN tasks c ON c.tenant = $1 AND c.parent_task_id = p.task_id
    WHERE p.depth < $3
  )`;
/** Deeper than any tree is: a loop in the data ends here. */
const bottom = 100;

/** What became of the leases of `p.task_id`. */
const summary = `SELECT (count(*) FILTER (WHERE l.outcome IS NULL))::int AS unsettled,
    (count(*) FILTER (WHERE l.outcome = 'revoked'))::int AS revoked,
    (count(*) FILTER (WHERE l.outcome = 'expired'))::int AS expired,
    (count(*) FILTER (WHERE l.outcome = 'returned'))::int AS returned,
    (count(*) FILTER (WHERE l.outcome = 'bounded'))::int AS bounded,
    (count(*) FILTER (WHERE l.outcome = 'irrevocable'))::int AS irrevocable
  FROM leases l WHERE l.tenant = $1 AND l.task_id = p.task_id`;

export interface TreePage {
  /** Levels below the task itself; undefined: all. */
  levels?: number;
  limit: number;
  /** Id of the last one before; `''` for the first page without the task itself. */
  after: string | undefined;
}

/** In the order of ids, in which a task comes before those below it. */
export async function listTree(pool: pg.Pool, task: Task, page: TreePage): Promise<Page<TaskNode>> {
  return await guarded(async () => {
    const { rows } = await pool.query<Row & LeaseSummary & { depth: number }>({
      name: 'list-tree',
      text: `${tree}, page AS (
          SELECT * FROM tree WHERE $4::text IS NULL OR task_id > $4 ORDER BY task_id LIMIT $5
        )
        SELECT t.task_id, t.parent_task_id, t.agent, t.agent_workload, t.opener, t.state, t.close_cause, t.deadline,
          t.settled_at, p.depth, s.*
        FROM page p
        JOIN tasks t ON t.tenant = $1 AND t.task_id = p.task_id
        CROSS JOIN LATERAL (${summary}) s
        ORDER BY p.task_id`,
      values: [task.tenant, task.taskId, page.levels ?? bottom, page.after ?? null, page.limit + 1],
    });
    const items = rows.slice(0, page.limit).map((row): TaskNode => {
      const { depth } = row;
      return { task: nodeTaskFromRow(row), depth, summary: summaryFromRow(row) };
    });
    return { items, next: rows.length > page.limit ? items.at(-1)!.task.taskId : undefined };
  });
}

export async function treeTotals(pool: pg.Pool, task: Task): Promise<TreeTotals> {
  return await guarded(async () => {
    const { rows } = await pool.query<LeaseSummary & Omit<TreeTotals, 'summary'>>({
      name: 'tree-totals',
      text: `${tree}
        SELECT count(*)::int AS tasks, (count(*) FILTER (WHERE p.settled_at IS NULL))::int AS "unsettledTasks",
          sum(unsettled)::int AS unsettled, sum(revoked)::int AS revoked, sum(expired)::int AS expired,
          sum(returned)::int AS returned, sum(bounded)::int AS bounded, sum(irrevocable)::int AS irrevocable
        FROM tree p CROSS JOIN LATERAL (${summary}) s`,
      values: [task.tenant, task.taskId, bottom],
    });
    const { tasks, unsettledTasks, ...counts } = rows[0]!;
    return { tasks, unsettledTasks, summary: counts };
  });
}

export async function isTreeSettled(pool: pg.Pool, task: Task): Promise<boolean> {
  return await guarded(async () => {
    const { rows } = await pool.query<{ settled: boolean }>({
      name: 'is-tree-settled',
      text: `${tree} SELECT NOT EXISTS (SELECT FROM tree p WHERE p.settled_at IS NULL) AS settled`,
      values: [task.tenant, task.taskId, bottom],
    });
    return rows[0]!.settled;
  });
}

function summaryFromRow({ unsettled, revoked, expired, returned, bounded, irrevocable }: LeaseSummary): LeaseSummary {
  return { unsettled, revoked, expired, returned, bounded, irrevocable };
}
