import type pg from 'pg';
import { deepest } from '../domain/delegation/chain.ts';
import type { Task } from '../domain/model.ts';
import type { Ending, OpenLease, ReevaluationStore } from '../domain/reevaluation.ts';
import type { Instant, Millis } from '../domain/time.ts';
import { guarded, transaction } from './pool.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest, leaseFromRow, taskFromRow } from './rows.ts';
import { channel } from './wake.ts';

type Row = Record<string, unknown>;

interface Work {
  activation_id: string;
  pass: number;
  cursor_at: Date | number;
  cursor_lease: string;
  activated_at: Date;
}

export function createReevaluationStore(pool: pg.Pool): ReevaluationStore {
  return {
    step: (tenant, digest, limit, passes, now, judge) => step(pool, tenant, digest, limit, passes, now, judge),

    open: (tenant, digest, limit) =>
      guarded(async () => {
        // Index leases_due.
        const { rows } = await pool.query(
          `SELECT * FROM leases WHERE tenant = $1 AND state <> 'settled' AND state = 'active' AND policy_revision <> $2
           ORDER BY settle_at LIMIT $3`,
          [tenant, digest, limit],
        );
        return await withTasks(pool, tenant, rows as Row[]);
      }),
  };
}

async function step(
  pool: pg.Pool,
  tenant: string,
  digest: string,
  limit: number,
  passes: readonly Millis[],
  now: Instant,
  judge: (open: readonly OpenLease[]) => Promise<readonly Ending[]>,
) {
  return await transaction(pool, async (client) => {
    const work = await claim(client, tenant, digest);
    if (work === undefined) return undefined;
    // SKIP LOCKED: a close or a renewal is never held up, and whoever holds the row is ending or judging it anyway; the
    // next pass sees what became of it. Index leases_due.
    const { rows } = await client.query(
      `SELECT * FROM leases
       WHERE tenant = $1 AND state <> 'settled' AND state = 'active' AND policy_revision <> $2
         AND settle_at >= $3 AND (settle_at, lease_id) > ($3, $4)
       ORDER BY settle_at, lease_id LIMIT $5 FOR UPDATE SKIP LOCKED`,
      [tenant, digest, infinite(work.cursor_at), work.cursor_lease, limit],
    );
    const ended = await judge(await withTasks(client, tenant, rows as Row[]));
    if (ended.length > 0) await end(client, tenant, ended, now);
    const last = rows.at(-1) as Row | undefined;
    const passDone = rows.length < limit;
    const next = work.pass + 1;
    if (!passDone) {
      await client.query(
        `UPDATE policy_reevaluations SET cursor_at = $3, cursor_lease = $4, decided = decided + $5, ended = ended + $6
         WHERE tenant = $1 AND activation_id = $2`,
        [tenant, work.activation_id, last!.settle_at, last!.lease_id, rows.length, ended.length],
      );
    } else {
      const due = passes[next];
      await client.query(
        `UPDATE policy_reevaluations SET pass = $3, cursor_at = '-infinity', cursor_lease = '',
           decided = decided + $4, ended = ended + $5, due_at = $6,
           finished_at = CASE WHEN $7 THEN clock_timestamp() END
         WHERE tenant = $1 AND activation_id = $2`,
        [
          tenant,
          work.activation_id,
          next,
          // Later passes look at the same leases again; they are counted once.
          work.pass === 0 ? rows.length : 0,
          ended.length,
          new Date(work.activated_at.getTime() + (due ?? 0)),
          due === undefined,
        ],
      );
    }
    return { looked: rows.length, ended, more: !passDone };
  });
}

/** One that a later activation has overtaken has nothing left to say. */
async function claim(client: pg.PoolClient, tenant: string, digest: string): Promise<Work | undefined> {
  const { rows } = await client.query<Work & { newest: string }>(
    `SELECT r.activation_id, r.pass, r.cursor_at, r.cursor_lease, a.activated_at,
       (SELECT max(n.activation_id) FROM policy_activations n WHERE n.tenant = r.tenant) AS newest
     FROM policy_reevaluations r JOIN policy_activations a USING (tenant, activation_id)
     WHERE r.tenant = $1 AND r.finished_at IS NULL AND r.due_at <= clock_timestamp()
       AND (a.digest = $2 OR r.activation_id < (SELECT max(n.activation_id) FROM policy_activations n WHERE n.tenant = $1))
     ORDER BY r.activation_id LIMIT 1 FOR UPDATE OF r SKIP LOCKED`,
    [tenant, digest],
  );
  const work = rows[0];
  if (work === undefined || work.activation_id === work.newest) return work;
  await client.query(
    'UPDATE policy_reevaluations SET finished_at = clock_timestamp() WHERE tenant = $1 AND activation_id = $2',
    [tenant, work.activation_id],
  );
  return undefined;
}

async function end(client: pg.PoolClient, tenant: string, endings: readonly Ending[], now: Instant): Promise<void> {
  await client.query(
    `UPDATE leases SET state = 'settling', settle_at = LEAST(settle_at, $3), settle_cause = 'policy'
     WHERE tenant = $1 AND lease_id = ANY($2)`,
    [tenant, endings.map(({ lease }) => lease.leaseId), new Date(now)],
  );
  await client.query(
    `${auditInsert} ${auditSelect} FROM ${auditUnnest(1)}`,
    auditColumns(endings.map(({ event }) => event)),
  );
  const tasks = [...new Set(endings.map(({ lease }) => lease.taskId))];
  await client.query(`SELECT pg_notify('${channel}', $1 || ' ' || t) FROM unnest($2::text[]) t`, [tenant, tasks]);
}

export async function withTasks(
  client: Pick<pg.ClientBase, 'query'> | pg.Pool,
  tenant: string,
  leases: readonly Row[],
): Promise<OpenLease[]> {
  const ids = [...new Set(leases.map((row) => row.task_id as string))];
  const { rows } = await client.query('SELECT * FROM tasks WHERE tenant = $1 AND task_id = ANY($2)', [tenant, ids]);
  const tasks = new Map(rows.map((row: Row) => [row.task_id as string, taskFromRow(row)]));
  await addTasksAbove(client, tenant, tasks);
  const approvals = await client.query<{ key: string; emergency: boolean }>(
    `SELECT l.task_id || ' ' || l.tool || ' ' || l.tier AS key, bool_or(a.kind = 'break_glass') AS emergency
     FROM leases l JOIN approval_uses u USING (tenant, lease_id) JOIN approvals a USING (tenant, approval_id)
     WHERE l.tenant = $1 AND l.task_id = ANY($2) GROUP BY 1`,
    [tenant, ids],
  );
  const approved = new Map(approvals.rows.map(({ key, emergency }) => [key, emergency]));
  return leases.flatMap((row) => {
    const lease = leaseFromRow(row);
    const task = tasks.get(lease.taskId);
    if (task === undefined) return [];
    const above: Task[] = [];
    for (let parent = parentOf(tasks, task); parent !== undefined; parent = parentOf(tasks, parent)) above.push(parent);
    if (above.length === 0 && task.parentTaskId !== undefined) return [];
    const chain = task.parentTaskId === undefined ? undefined : above;
    const emergency = approved.get(`${lease.taskId} ${lease.tool} ${lease.tier}`);
    return [{ lease, task, above: chain, approved: emergency !== undefined, emergency: emergency === true }];
  });
}

function parentOf(tasks: ReadonlyMap<string, Task>, task: Task): Task | undefined {
  return task.parentTaskId === undefined ? undefined : tasks.get(task.parentTaskId);
}

/** Level by level: a batch is of few trees. */
async function addTasksAbove(
  client: Pick<pg.ClientBase, 'query'> | pg.Pool,
  tenant: string,
  tasks: Map<string, Task>,
): Promise<void> {
  let missing = parentsMissing(tasks);
  for (let level = 0; missing.length > 0 && level <= deepest; level++) {
    const { rows } = await client.query('SELECT * FROM tasks WHERE tenant = $1 AND task_id = ANY($2)', [
      tenant,
      missing,
    ]);
    for (const row of rows as Row[]) tasks.set(row.task_id as string, taskFromRow(row));
    missing = rows.length === 0 ? [] : parentsMissing(tasks);
  }
}

function parentsMissing(tasks: ReadonlyMap<string, Task>): string[] {
  const parents = [...tasks.values()].flatMap(({ parentTaskId }) => parentTaskId ?? []);
  return [...new Set(parents)].filter((id) => !tasks.has(id));
}

/** The driver reads '-infinity' as a number, and writes only text as such. */
function infinite(value: Date | number): Date | string {
  return typeof value === 'number' ? '-infinity' : value;
}
