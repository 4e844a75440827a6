import type pg from 'pg';
import type { AuditEvent } from '../domain/audit.ts';
import type { Lease } from '../domain/model.ts';
import type { FinishedTask, Settled, SettlementStore } from '../domain/store.ts';
import type { Instant, Millis } from '../domain/time.ts';
import { guarded, transaction } from './pool.ts';
import { giveUsesBack } from './approval-uses.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest, leaseFromRow } from './rows.ts';
import { selfContainedEnd, selfContainedEvent } from './self-contained.ts';
import { channel, notifyTasks } from './wake.ts';

type Row = Record<string, unknown>;

export function createSettlementStore(pool: pg.Pool): SettlementStore {
  return {
    settleSelfContained: (kinds, now, limit, only, except) =>
      settleSelfContained(pool, kinds, now, limit, only, except ?? []),
    claim: (kinds, now, claimFor, limit, exceptTargets, onlyTarget) =>
      claim(pool, kinds, now, claimFor, limit, exceptTargets, onlyTarget),
    claimIrrevocable: (kinds, now, claimFor, limit, exceptTargets) =>
      claimIrrevocable(pool, kinds, now, claimFor, limit, exceptTargets),
    settled: (results, now) => settled(pool, results, now),
    corrected: (results, now) => corrected(pool, results, now),

    failed: (lease, error, retryAt) =>
      guarded(async () => {
        await pool.query(
          `UPDATE leases SET settle_at = $3, settle_error = $4
           WHERE tenant = $1 AND lease_id = $2 AND (state = 'settling' OR outcome = 'irrevocable')`,
          [lease.tenant, lease.leaseId, new Date(retryAt), error.slice(0, 500)],
        );
      }),

    completeTasks: (now, limit, exceptTenants = []) =>
      finishTasks(
        pool,
        now,
        'task.settled',
        // Index tasks_unsettled. An irrevocable lease leaves the task degraded, and with it those above: somebody has to
        // look. A task is settled when all below it are (index tasks_children). LIMIT 1 and bool_or keep each look one for
        // its task by that index: as EXISTS they are joins or scans for which the planner may read all that is open or closed.
        `UPDATE tasks t SET settled_at = $1, state = CASE WHEN EXISTS (
            SELECT FROM leases l WHERE l.tenant = t.tenant AND l.task_id = t.task_id AND l.outcome = 'irrevocable')
            OR (
            SELECT bool_or(b.state = 'close_degraded') FROM tasks b
            WHERE b.tenant = t.tenant AND b.parent_task_id = t.task_id)
          THEN 'close_degraded' ELSE 'closed' END
        WHERE (t.tenant, t.task_id) IN (
          SELECT c.tenant, c.task_id FROM tasks c
          WHERE c.closed_at IS NOT NULL AND c.settled_at IS NULL AND c.tenant <> ALL($3) AND (
            SELECT true FROM tasks b WHERE b.tenant = c.tenant AND b.parent_task_id = c.task_id AND b.settled_at IS NULL
            LIMIT 1) IS NULL
            AND (
            SELECT true FROM leases l WHERE l.tenant = c.tenant AND l.task_id = c.task_id AND l.state <> 'settled'
            LIMIT 1) IS NULL
          ORDER BY c.closed_at LIMIT $2 FOR UPDATE SKIP LOCKED)
        RETURNING t.tenant, t.task_id, t.state, t.parent_task_id`,
        [new Date(now), limit, exceptTenants],
      ),

    degradeTasks: (since, now) =>
      finishTasks(
        pool,
        now,
        'task.degraded',
        `UPDATE tasks t SET state = 'close_degraded'
        WHERE (t.tenant, t.task_id) IN (
          SELECT c.tenant, c.task_id FROM tasks c
          WHERE c.closed_at IS NOT NULL AND c.settled_at IS NULL AND c.state = 'closing' AND c.closed_at <= $1
          ORDER BY c.closed_at LIMIT 500 FOR UPDATE SKIP LOCKED)
        RETURNING t.tenant, t.task_id, t.state, t.parent_task_id`,
        [new Date(since)],
      ),

    nextDue: () =>
      guarded(async () => {
        const { rows } = await pool.query<{ due: Date | null }>({
          name: 'next-due-lease',
          text: `SELECT min(settle_at) AS due FROM leases WHERE state <> 'settled'`,
        });
        return rows[0]?.due?.getTime();
      }),

    forgetRevocations: (now) =>
      guarded(async () => {
        const { rowCount } = await pool.query('DELETE FROM revocations WHERE forget_at < $1', [new Date(now)]);
        return rowCount ?? 0;
      }),
  };
}

/** Whatever ends a lease alone is told, but what the feed has already, or nobody needs to be told. */
const byItself = `settle_cause NOT IN ('closed', 'expired', 'abandoned', 'handed_over', 'locked')`;

/**
 * A thousand leases are one statement; those of a task that is closed are settled by its close. A closed task's tokens are on the feed by the task's own entry; a returned or superseded one by its lease's.
 */
async function settleSelfContained(
  pool: pg.Pool,
  kinds: readonly string[],
  now: Instant,
  limit: number,
  only: { tenant: string; leaseId: string } | undefined,
  exceptTenants: readonly string[],
): Promise<{ count: number; tenants: string[] }> {
  const end = selfContainedEnd('$1');
  return await guarded(async () => {
    const { rows } = await pool.query<{ count: number; tenants: string[] }>({
      // Two statements: one condition for both could not bound the index (leases_due), and each round would read all
      // leases that are open.
      name: only === undefined ? 'settle-self-contained' : 'settle-one-self-contained',
      text: `WITH due AS (
          SELECT tenant, task_id, lease_id, state FROM leases
          WHERE state <> 'settled' AND provider = ANY($2) AND tenant <> ALL($6)
            AND ${only === undefined ? '$4::text IS NULL AND $5::text IS NULL AND settle_at <= $1' : 'tenant = $4 AND lease_id = $5'}
          ORDER BY settle_at LIMIT $3 FOR UPDATE SKIP LOCKED
        ), pending AS (
          SELECT tenant, task_id, lease_id FROM due WHERE state = 'pending'
        ), ${giveUsesBack('pending', '$1')}, done AS (
          UPDATE leases l
          SET state = 'settled', settled_at = $1,
            -- A pending one was left behind by its issue: nobody received it, and its request_id is free again.
            settle_cause = COALESCE(l.settle_cause, CASE WHEN l.state = 'pending' THEN 'abandoned' ELSE 'expired' END),
            request_id = CASE WHEN l.state = 'pending' THEN l.request_id || '~' || l.lease_id ELSE l.request_id END,
            settle_attempts = l.settle_attempts + 1, settle_error = NULL,
            outcome = ${end.outcome}, dead_by = ${end.deadBy}
          FROM due d WHERE l.tenant = d.tenant AND l.lease_id = d.lease_id
          RETURNING l.tenant, l.lease_id, l.task_id, l.outcome, l.settle_cause, l.expires_at, l.dead_by, l.tool, l.tier
        ), feed AS (
          INSERT INTO revocations (tenant, lease_id, revoked_at, forget_at)
          SELECT tenant, lease_id, clock_timestamp(), expires_at FROM done
          WHERE ${byItself} AND expires_at > $1
        ), logged AS (
          ${auditInsert} ${selfContainedEvent('$1')} FROM done
        ), woken AS (
          SELECT pg_notify('${channel}', tenant || ' ' || task_id)
          FROM (SELECT DISTINCT tenant, task_id FROM done WHERE ${byItself}) changed
        )
        SELECT count(*)::int AS count, COALESCE(array_agg(DISTINCT tenant), '{}') AS tenants,
          (SELECT count(*) FROM woken) AS woken FROM done`,
      values: [new Date(now), kinds, limit, only?.tenant ?? null, only?.leaseId ?? null, exceptTenants],
    });
    const { count, tenants } = rows[0]!;
    return { count, tenants };
  });
}

async function claim(
  pool: pg.Pool,
  kinds: readonly string[],
  now: Instant,
  claimFor: Millis,
  limit: number,
  exceptTargets: readonly string[],
  onlyTarget: string | undefined,
): Promise<Lease[]> {
  return await guarded(async () => {
    const { rows } = await pool.query({
      name: 'claim-leases',
      // Index leases_due. A pending lease that is due was left behind by its issue: its request_id is free again.
      // Nobody received it, so its approval has lost no use.
      text: `WITH due AS (
          SELECT d.tenant, d.task_id, d.lease_id, d.state FROM leases d
          WHERE d.state <> 'settled' AND d.settle_at <= $1 AND d.provider = ANY($3)
            AND split_part(d.handle, '/', 1) <> ALL($4) AND ($6::text IS NULL OR split_part(d.handle, '/', 1) = $6)
          ORDER BY d.settle_at LIMIT $5 FOR UPDATE SKIP LOCKED
        ), pending AS (
          SELECT tenant, task_id, lease_id FROM due WHERE state = 'pending'
        ), ${giveUsesBack('pending', '$1')}
        UPDATE leases l
        SET state = 'settling', settle_at = $2, settle_attempts = l.settle_attempts + 1,
          settling_since = COALESCE(l.settling_since, $1),
          settle_cause = COALESCE(l.settle_cause, CASE WHEN l.state = 'pending' THEN 'abandoned' ELSE 'expired' END),
          request_id = CASE WHEN l.state = 'pending' THEN l.request_id || '~' || l.lease_id ELSE l.request_id END
        FROM due d WHERE l.tenant = d.tenant AND l.lease_id = d.lease_id
        RETURNING l.*`,
      values: [new Date(now), new Date(now + claimFor), kinds, exceptTargets, limit, onlyTarget ?? null],
    });
    return rows.map((row) => leaseFromRow(row as Row));
  });
}

async function claimIrrevocable(
  pool: pg.Pool,
  kinds: readonly string[],
  now: Instant,
  claimFor: Millis,
  limit: number,
  exceptTargets: readonly string[],
): Promise<Lease[]> {
  return await guarded(async () => {
    const { rows } = await pool.query({
      name: 'claim-irrevocable-leases',
      // Index leases_irrevocable.
      text: `UPDATE leases l SET settle_at = $2, settle_attempts = l.settle_attempts + 1
        WHERE (l.tenant, l.lease_id) IN (
          SELECT d.tenant, d.lease_id FROM leases d
          WHERE d.outcome = 'irrevocable' AND d.abandoned_at IS NULL AND d.settle_at <= $1 AND d.provider = ANY($3)
            AND split_part(d.handle, '/', 1) <> ALL($4)
          ORDER BY d.settle_at LIMIT $5 FOR UPDATE SKIP LOCKED)
        RETURNING l.*`,
      values: [new Date(now), new Date(now + claimFor), kinds, exceptTargets, limit],
    });
    return rows.map((row) => leaseFromRow(row as Row));
  });
}

async function settled(pool: pg.Pool, results: Settled[], now: Instant): Promise<void> {
  const events: AuditEvent[] = results.map(({ lease, outcome, deadBy }) => ({
    tenant: lease.tenant,
    kind: 'lease.settled',
    at: now,
    actor: 'broker',
    taskId: lease.taskId,
    leaseId: lease.leaseId,
    detail: {
      tool: lease.tool,
      tier: lease.tier,
      outcome,
      cause: lease.settleCause,
      attempts: lease.settleAttempts,
      ...(deadBy === undefined ? {} : { dead_by: new Date(deadBy).toISOString() }),
    },
  }));
  await guarded(() =>
    pool.query({
      name: 'settle-leases',
      text: `WITH input AS (
          SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::text[], $7::float8[])
            AS i(tenant, lease_id, outcome, dead_by, handle, retry_at)
        ), done AS (
          UPDATE leases l
          SET state = 'settled', outcome = i.outcome, dead_by = to_timestamp(i.dead_by / 1000),
            settled_at = to_timestamp($6::float8 / 1000),
            settle_at = COALESCE(to_timestamp(i.retry_at / 1000), l.settle_at),
            settle_error = CASE WHEN i.outcome = 'irrevocable' THEN l.settle_error END
          FROM input i
          -- Another handle than the one that was settled: its target named the credential meanwhile, and it is due again.
          WHERE l.tenant = i.tenant AND l.lease_id = i.lease_id AND l.state = 'settling' AND l.handle = i.handle
          RETURNING l.lease_id
        )
        ${auditInsert} ${auditSelect} FROM ${auditUnnest(8)} WHERE e.lease_id IN (SELECT lease_id FROM done)`,
      values: [
        results.map((result) => result.lease.tenant),
        results.map((result) => result.lease.leaseId),
        results.map((result) => result.outcome),
        results.map((result) => result.deadBy ?? null),
        results.map((result) => result.lease.handle),
        now,
        results.map((result) => result.retryAt ?? null),
        ...auditColumns(events),
      ],
    }),
  );
}

/** The outcome that was wrong stays in the audit, beside the one that replaces it. */
async function corrected(pool: pg.Pool, results: Settled[], now: Instant): Promise<FinishedTask[]> {
  return await transaction(pool, async (client) => {
    const { rows } = await client.query<{ tenant: string; lease_id: string; task_id: string }>(
      `WITH input AS (
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $5::float8[]) AS i(tenant, lease_id, outcome, dead_by)
       )
       UPDATE leases l SET outcome = i.outcome, settled_at = $4, settle_error = NULL,
         dead_by = to_timestamp(i.dead_by / 1000)
       FROM input i WHERE l.tenant = i.tenant AND l.lease_id = i.lease_id AND l.outcome = 'irrevocable'
       RETURNING l.tenant, l.lease_id, l.task_id`,
      [
        results.map((result) => result.lease.tenant),
        results.map((result) => result.lease.leaseId),
        results.map((result) => result.outcome),
        new Date(now),
        results.map((result) => result.deadBy ?? null),
      ],
    );
    if (rows.length === 0) return [];
    const done = new Set(rows.map((row) => row.lease_id));
    const events = results
      .filter(({ lease }) => done.has(lease.leaseId))
      .map(({ lease, outcome }): AuditEvent => ({
        tenant: lease.tenant,
        kind: 'lease.corrected',
        at: now,
        actor: 'broker',
        taskId: lease.taskId,
        leaseId: lease.leaseId,
        detail: { tool: lease.tool, tier: lease.tier, from: 'irrevocable', outcome, attempts: lease.settleAttempts },
      }));
    await client.query(`${auditInsert} ${auditSelect} FROM ${auditUnnest(1)}`, auditColumns(events));
    const closed: FinishedTask[] = [];
    let level = rows.map((row) => ({ tenant: row.tenant, taskId: row.task_id }));
    while (level.length > 0) {
      const mended = await closeMended(client, level, now);
      closed.push(...mended);
      // Those above may have been degraded for this one's sake alone.
      level = mended.flatMap(({ tenant, parentTaskId }) =>
        parentTaskId === undefined ? [] : [{ tenant, taskId: parentTaskId }],
      );
    }
    return closed;
  });
}

/** Degraded tasks of which nothing is irrevocable any more. */
async function closeMended(
  client: pg.PoolClient,
  tasks: readonly { tenant: string; taskId: string }[],
  now: Instant,
): Promise<FinishedTask[]> {
  const values = [tasks.map(({ tenant }) => tenant), tasks.map(({ taskId }) => taskId)];
  // Two corrections of one task wait for each other here, and the later one sees that none is left.
  await client.query(
    `SELECT FROM tasks WHERE (tenant, task_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))
     ORDER BY tenant, task_id FOR UPDATE`,
    values,
  );
  return await recordFinished(
    client,
    now,
    'task.settled',
    `UPDATE tasks t SET state = 'closed'
     WHERE (t.tenant, t.task_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))
       AND t.state = 'close_degraded' AND t.settled_at IS NOT NULL AND NOT EXISTS (
         SELECT FROM leases l WHERE l.tenant = t.tenant AND l.task_id = t.task_id AND l.outcome = 'irrevocable')
       AND NOT EXISTS (
         SELECT FROM tasks b WHERE b.tenant = t.tenant AND b.parent_task_id = t.task_id AND b.state = 'close_degraded')
     RETURNING t.tenant, t.task_id, t.state, t.parent_task_id`,
    values,
  );
}

async function finishTasks(
  pool: pg.Pool,
  now: Instant,
  kind: 'task.settled' | 'task.degraded',
  update: string,
  values: unknown[],
): Promise<FinishedTask[]> {
  return await transaction(pool, (client) => recordFinished(client, now, kind, update, values));
}

async function recordFinished(
  client: pg.PoolClient,
  now: Instant,
  kind: 'task.settled' | 'task.degraded',
  update: string,
  values: unknown[],
): Promise<FinishedTask[]> {
  const { rows } = await client.query<{
    tenant: string;
    task_id: string;
    state: FinishedTask['state'];
    parent_task_id: string | null;
  }>(
    // The events are made where the rows are: of a large tree there are a thousand.
    `WITH finished AS (
      ${update}
    ), logged AS (
      ${auditInsert}
      SELECT tenant, $${values.length + 1}::text, $${values.length + 2}::timestamptz, 'broker', task_id, NULL,
        json_build_object('state', state)
      FROM finished
    )
    SELECT * FROM finished`,
    [...values, kind, new Date(now)],
  );
  if (rows.length === 0) return [];
  if (kind === 'task.settled') await markUnfinished(client, rows, now);
  for (const [tenant, ofTenant] of Map.groupBy(rows, (row) => row.tenant)) {
    await notifyTasks(
      client,
      tenant,
      ofTenant.map((row) => row.task_id),
    );
  }
  return rows.map((row) => ({
    tenant: row.tenant,
    taskId: row.task_id,
    state: row.state,
    parentTaskId: row.parent_task_id ?? undefined,
  }));
}

/** Nobody will say any more how these calls ended, or too late. Uses index tool_calls_running. */
async function markUnfinished(
  client: pg.PoolClient,
  tasks: readonly { tenant: string; task_id: string }[],
  now: Instant,
): Promise<void> {
  await client.query({
    name: 'mark-unfinished-calls',
    text: `WITH marked AS (
        UPDATE tool_calls c SET unfinished_at = $3
        FROM unnest($1::text[], $2::text[]) AS s(tenant, task_id)
        WHERE c.tenant = s.tenant AND c.task_id = s.task_id AND c.ended_at IS NULL AND c.unfinished_at IS NULL
        RETURNING c.tenant, c.task_id, c.lease_id, c.call_id, c.reporter, c.tool, c.tier, c.action
      )
      ${auditInsert}
      SELECT tenant, 'call.unfinished', $3, 'broker', task_id, lease_id,
        json_build_object('call_id', call_id, 'reporter', reporter, 'tool', tool, 'tier', tier, 'action', action)
      FROM marked ORDER BY call_id`,
    values: [tasks.map(({ tenant }) => tenant), tasks.map(({ task_id: id }) => id), new Date(now)],
  });
}
