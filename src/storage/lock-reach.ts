import type pg from 'pg';
import type { Lock } from '../domain/locks/model.ts';
import type { LockStore } from '../domain/locks/store.ts';
import { lockFromRow, reachOf, scopeColumns } from './lock-rows.ts';
import { guarded, transaction } from './pool.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest, leaseFromRow } from './rows.ts';
import { channel } from './wake.ts';

type Row = Record<string, unknown>;

/** Beyond this nobody counts. */
const mostCounted = 100_000;

/** What is open under a lock, and closing it. */
export function createLockReach(
  pool: pg.Pool,
): Pick<LockStore, 'knows' | 'reach' | 'claimSettling' | 'releaseSettling' | 'tasksUnder' | 'endLeases' | 'settled'> {
  return {
    knows: (lock) =>
      guarded(async () => {
        const { tasks, leases } = reachOf(lock.scope);
        const { rows } = await pool.query<{ known: boolean }>(
          `SELECT EXISTS (SELECT FROM tasks t WHERE t.state = 'open' AND ${tasks})
             OR EXISTS (SELECT FROM leases l WHERE l.state <> 'settled' AND ${leases}) AS known`,
          subject(lock),
        );
        return rows[0]!.known;
      }),

    reach: (lock, now) =>
      guarded(async () => {
        const { tasks, leases } = reachOf(lock.scope);
        // Indexes tasks_open, leases_due and leases_bounded: what is open is little beside what was.
        const { rows } = await pool.query<Row>(
          `WITH open_tasks AS (
             SELECT FROM tasks t WHERE t.state = 'open' AND ${tasks} LIMIT ${mostCounted}
           ), unsettled AS (
             SELECT l.expires_at FROM leases l WHERE l.state <> 'settled' AND ${leases} LIMIT ${mostCounted}
           ), bounded AS (
             SELECT l.dead_by FROM leases l WHERE l.outcome = 'bounded' AND l.dead_by > $4 AND ${leases} LIMIT ${mostCounted}
           )
           SELECT (SELECT count(*)::int FROM open_tasks) AS tasks, (SELECT count(*)::int FROM unsettled) AS unsettled,
             (SELECT count(*)::int FROM bounded) AS bounded,
             GREATEST((SELECT max(expires_at) FROM unsettled), (SELECT max(dead_by) FROM bounded)) AS alive_until`,
          [...subject(lock), new Date(now)],
        );
        const row = rows[0]!;
        const until = row.alive_until as Date | null;
        return {
          openTasks: row.tasks as number,
          unsettledLeases: row.unsettled as number,
          boundedLeases: row.bounded as number,
          aliveUntil: until === null || until.getTime() <= now ? undefined : until.getTime(),
        };
      }),

    claimSettling: (claimFor) =>
      guarded(async () => {
        // Index locks_in_force.
        const { rows } = await pool.query<Row>({
          name: 'claim-settling-lock',
          text: `UPDATE locks SET settle_claim = clock_timestamp() + $1::float8 * interval '1 millisecond'
            WHERE (tenant, lock_id) IN (
              SELECT d.tenant, d.lock_id FROM locks d
              WHERE d.state = 'active' AND d.settle AND d.settled_at IS NULL AND d.settle_claim <= clock_timestamp()
              ORDER BY d.settle_claim LIMIT 1 FOR UPDATE SKIP LOCKED)
            RETURNING *`,
          values: [claimFor],
        });
        return rows[0] && lockFromRow(rows[0]);
      }),

    releaseSettling: async (lock) => {
      await guarded(() =>
        pool.query(`UPDATE locks SET settle_claim = '-infinity' WHERE tenant = $1 AND lock_id = $2`, [
          lock.tenant,
          lock.lockId,
        ]),
      );
    },

    tasksUnder: (lock, limit) =>
      guarded(async () => {
        const { rows } = await pool.query<{ tenant: string; task_id: string }>(
          `SELECT t.tenant, t.task_id FROM tasks t WHERE t.state = 'open' AND ${reachOf(lock.scope).tasks}
           ORDER BY t.parent_task_id IS NOT NULL, t.task_id LIMIT $4`,
          [...subject(lock), limit],
        );
        return rows.map((row) => ({ tenant: row.tenant, taskId: row.task_id }));
      }),

    endLeases: async (lock, now, limit, event) =>
      await transaction(pool, async (client) => {
        // SKIP LOCKED: whoever holds the row is ending it anyway, and the next round sees what became of it. Index leases_due.
        const { rows } = await client.query<Row>(
          `WITH ended AS (
             UPDATE leases l SET state = 'settling', settle_at = LEAST(l.settle_at, $4), settle_cause = 'locked'
             WHERE (l.tenant, l.lease_id) IN (
               SELECT l.tenant, l.lease_id FROM leases l
               WHERE l.state <> 'settled' AND l.state = 'active' AND ${reachOf(lock.scope).leases}
               ORDER BY l.settle_at LIMIT $5 FOR UPDATE SKIP LOCKED)
             RETURNING l.*
           ), feed AS (
             -- A self-contained token (no handle) is on the feed with the commit.
             INSERT INTO revocations (tenant, lease_id, revoked_at, forget_at)
             SELECT tenant, lease_id, clock_timestamp(), expires_at FROM ended WHERE handle = '' AND expires_at > $4
           )
           SELECT * FROM ended`,
          [...subject(lock), new Date(now), limit],
        );
        if (rows.length === 0) {
          const { rows: left } = await client.query<{ left: boolean }>(
            `SELECT EXISTS (
               SELECT FROM leases l WHERE l.state <> 'settled' AND l.state IN ('pending', 'active') AND ${reachOf(lock.scope).leases}
             ) AS left`,
            subject(lock),
          );
          return { ended: [], left: left[0]!.left };
        }
        const leases = rows.map(leaseFromRow);
        await client.query(`${auditInsert} ${auditSelect} FROM ${auditUnnest(1)}`, auditColumns(leases.map(event)));
        const tasks = [...new Set(leases.map(({ tenant, taskId }) => `${tenant} ${taskId}`))];
        await client.query(`SELECT pg_notify('${channel}', t) FROM unnest($1::text[]) t`, [tasks]);
        return { ended: leases, left: true };
      }),

    settled: async (lock, event) => {
      await guarded(() =>
        pool.query(
          `WITH done AS (
             UPDATE locks SET settled_at = clock_timestamp() WHERE tenant = $1 AND lock_id = $2 AND settled_at IS NULL
             RETURNING lock_id
           )
           ${auditInsert} ${auditSelect} FROM ${auditUnnest(3)} WHERE EXISTS (SELECT FROM done)`,
          [lock.tenant, lock.lockId, ...auditColumns([event])],
        ),
      );
    },
  };
}

/** `$1` to `$3` of `reachOf`. */
function subject(lock: Pick<Lock, 'tenant' | 'scope'>): [string, string, string | null] {
  const [name, tier] = scopeColumns(lock.scope);
  return [lock.tenant, name, tier];
}
