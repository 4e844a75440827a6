import type pg from 'pg';
import { rateKey } from '../domain/facts.ts';
import type { CalledAccess, DecisionFacts, Earlier, Facts, HeldAccess, RateNeed, Uncounted } from '../domain/facts.ts';
import type { ToolAccess } from '../domain/model.ts';
import type { Instant } from '../domain/time.ts';
import { guarded } from './pool.ts';

type FactTask = Parameters<DecisionFacts['load']>[0];

/** Nobody received an abandoned lease: it counts for nothing. A line is one tool and tier of one task from one moment. */
const counted = `l.settle_cause IS DISTINCT FROM 'abandoned' AND l.lease_id IS DISTINCT FROM $3
        AND NOT COALESCE(l.line_started_at = $4 AND l.task_id = $5 AND l.tool = $6 AND l.tier = $7, false)`;
/** A count beyond this is as good as any larger one, and is found without reading them all. */
const maxCount = 1_000_000;

export function createFactsStore(pool: pg.Pool): DecisionFacts {
  return {
    load: (task, access, needs, now, except) =>
      guarded(async () => {
        const [held, called, lineage, earlier, ...counts] = await Promise.all([
          needs.held ? heldBy(pool, task, access, except) : undefined,
          needs.called ? calledBy(pool, task) : undefined,
          needs.lineage && task.parentTaskId !== undefined ? lineageOf(pool, task) : undefined,
          needs.earlier ? earlierOf(pool, task, access, except) : undefined,
          ...needs.rates.map((need) => countOf(pool, task, access, need, now, except)),
        ]);
        const rates = new Map(needs.rates.map((need, index) => [rateKey(need), counts[index]!]));
        return { held, lineage, earlier, rates, ...(called === undefined ? {} : { called }) } satisfies Facts;
      }),
  };
}

function uncounted(task: FactTask, access: ToolAccess, except: Uncounted | undefined): unknown[] {
  const { leaseId = null, lineStartedAt, taskId = task.taskId } = except ?? {};
  const line = lineStartedAt === undefined ? null : new Date(lineStartedAt);
  return [leaseId, line, taskId, access.tool, access.tier];
}

async function heldBy(
  pool: pg.Pool,
  task: FactTask,
  access: ToolAccess,
  except: Uncounted | undefined,
): Promise<HeldAccess[]> {
  const { rows } = await pool.query<HeldAccess>({
    name: 'facts-held',
    text: `SELECT l.tool, l.tier, (count(*) FILTER (WHERE l.renewed_from IS NULL))::int AS count
      FROM tasks t JOIN leases l ON l.tenant = t.tenant AND l.task_id = t.task_id
      WHERE t.tenant = $1 AND t.root_task_id = $2 AND ${counted}
      GROUP BY l.tool, l.tier ORDER BY l.tool, l.tier`,
    values: [task.tenant, task.rootTaskId, ...uncounted(task, access, except)],
  });
  return rows;
}

/** Indexes tasks_tree and tool_calls_of_task. */
async function calledBy(pool: pg.Pool, task: FactTask): Promise<CalledAccess[]> {
  const { rows } = await pool.query<CalledAccess>({
    name: 'facts-called',
    text: `SELECT c.tool, c.tier, (count(*) FILTER (WHERE c.reporter = 'agent'))::int AS reported,
        (count(*) FILTER (WHERE c.reporter = 'tool'))::int AS attested
      FROM tasks t JOIN tool_calls c ON c.tenant = t.tenant AND c.task_id = t.task_id
      WHERE t.tenant = $1 AND t.root_task_id = $2
      GROUP BY c.tool, c.tier ORDER BY c.tool, c.tier`,
    values: [task.tenant, task.rootTaskId],
  });
  return rows;
}

/** The primary key of leases' tasks finds them. A line that goes on is one of them. */
async function earlierOf(
  pool: pg.Pool,
  task: FactTask,
  { tool, tier }: ToolAccess,
  except: Uncounted | undefined,
): Promise<Earlier> {
  const { rows } = await pool.query<{ credentials: number; since: Date | null }>({
    name: 'facts-earlier',
    text: `SELECT count(*)::int AS credentials, min(l.line_started_at) AS since FROM leases l
      WHERE l.tenant = $1 AND l.task_id = $2 AND l.tool = $3 AND l.tier = $4
        AND l.settle_cause IS DISTINCT FROM 'abandoned' AND l.lease_id IS DISTINCT FROM $5`,
    values: [task.tenant, task.taskId, tool, tier, except?.leaseId ?? null],
  });
  const { credentials, since } = rows[0]!;
  return { credentials, since: since?.getTime() };
}

async function lineageOf(pool: pg.Pool, task: FactTask): Promise<Facts['lineage']> {
  const { rows } = await pool.query<{ depth: number; orchestrator: string }>({
    name: 'facts-lineage',
    // Bounded, so that a row that somebody tampered with cannot make it go round for ever.
    text: `WITH RECURSIVE up AS (
        SELECT parent_task_id, opener, 0 AS depth FROM tasks WHERE tenant = $1 AND task_id = $2
        UNION ALL
        SELECT t.parent_task_id, t.opener, up.depth + 1 FROM up JOIN tasks t ON t.tenant = $1 AND t.task_id = up.parent_task_id
        WHERE up.depth < 100
      )
      SELECT depth, opener AS orchestrator FROM up WHERE parent_task_id IS NULL`,
    values: [task.tenant, task.taskId],
  });
  return rows[0];
}

async function countOf(
  pool: pg.Pool,
  task: FactTask,
  access: ToolAccess,
  { scope, window, tool }: RateNeed,
  now: Instant,
  except: Uncounted | undefined,
): Promise<number> {
  const key = { task: task.rootTaskId, agent: task.agent, tool: access.tool }[scope];
  const from =
    scope === 'task'
      ? `tasks t JOIN leases l ON l.tenant = t.tenant AND l.task_id = t.task_id WHERE t.tenant = $1 AND t.root_task_id = $2`
      : `leases l WHERE l.tenant = $1 AND l.${scope} = $2`;
  const { rows } = await pool.query<{ count: number }>({
    name: `facts-rate-${scope}`,
    text: `SELECT count(*)::int AS count FROM (
        SELECT FROM ${from} AND ${counted} AND l.renewed_from IS NULL
          AND l.issued_at > $8 AND ($9::text IS NULL OR l.tool = $9) LIMIT ${maxCount}
      ) found`,
    values: [task.tenant, key, ...uncounted(task, access, except), new Date(now - window), tool ?? null],
  });
  return rows[0]!.count;
}
