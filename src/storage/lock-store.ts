import type pg from 'pg';
import type { Lock } from '../domain/locks/model.ts';
import type { LockStore, NewLock } from '../domain/locks/store.ts';
import type { AuditEvent } from '../domain/audit.ts';
import type { Millis } from '../domain/time.ts';
import { closeGate, isGateBusy } from './lock-gate.ts';
import { lockFromRow, scopeColumns } from './lock-rows.ts';
import { createLockReach } from './lock-reach.ts';
import { guarded, transaction } from './pool.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest } from './rows.ts';
import { lockChannel } from './wake.ts';

type Row = Record<string, unknown>;

/** How long one attempt waits for writes that are under way; everybody else waits behind it. */
const patience: Millis = 3_000;
const attempts = 3;

/** Locks that this tenant's people see: on it, on every tenant, and those that they placed. */
const visible = `(tenant IN ($1, '*') OR placed_in = $1)`;

export function createLockStore(pool: pg.Pool): LockStore {
  return {
    ...createLockReach(pool),

    view: () =>
      guarded(async () => {
        // One statement, one snapshot: exactly the locks of that epoch. Index locks_in_force.
        const { rows } = await pool.query<Row>({
          name: 'locks-in-force',
          text: `SELECT s.epoch AS lock_epoch, l.* FROM lock_state s LEFT JOIN locks l ON l.state = 'active'
            WHERE s.one ORDER BY l.tenant, l.lock_id`,
        });
        return {
          epoch: Number(rows[0]!.lock_epoch),
          locks: rows.filter((row) => row.lock_id !== null).map(lockFromRow),
        };
      }),

    place: (lock, most, event) => place(pool, lock, most, event),

    change: async (tenant, lockId, change) =>
      await transaction(pool, async (client) => {
        const { rows } = await client.query<Row>(`SELECT * FROM locks WHERE ${visible} AND lock_id = $2 FOR UPDATE`, [
          tenant,
          lockId,
        ]);
        const lock = rows[0] && lockFromRow(rows[0]);
        const changed = lock && change(lock);
        if (lock === undefined || changed === undefined) return lock;
        const next: Lock = { ...lock, ...changed.set };
        const at = (value: number | undefined) => (value === undefined ? null : new Date(value));
        await client.query(
          `UPDATE locks SET state = $3, lift_asked_by = $4, lift_asked_at = $5, lift_reason = $6, ended_by = $7, ended_at = $8
           WHERE tenant = $1 AND lock_id = $2`,
          [
            lock.tenant,
            lockId,
            next.state,
            next.liftAskedBy ?? null,
            at(next.liftAskedAt),
            next.liftReason,
            next.endedBy ?? null,
            at(next.endedAt),
          ],
        );
        await logged(client, [changed.event]);
        if (next.state !== 'active') await newEpoch(client);
        return next;
      }),

    expire: async (limit, event) =>
      await transaction(pool, async (client) => {
        // By the database's clock, which all replicas share. Index locks_in_force.
        const { rows } = await client.query<Row>(
          `UPDATE locks SET state = 'expired', ended_by = 'broker', ended_at = clock_timestamp()
           WHERE (tenant, lock_id) IN (
             SELECT d.tenant, d.lock_id FROM locks d
             WHERE d.state = 'active' AND d.expires_at <= clock_timestamp()
             ORDER BY d.tenant, d.lock_id LIMIT $1 FOR UPDATE SKIP LOCKED)
           RETURNING *`,
          [limit],
        );
        if (rows.length === 0) return [];
        const locks = rows.map(lockFromRow);
        await logged(client, locks.map(event));
        await newEpoch(client);
        return locks;
      }),

    get: (tenant, lockId) =>
      guarded(async () => {
        const { rows } = await pool.query<Row>(`SELECT * FROM locks WHERE ${visible} AND lock_id = $2`, [
          tenant,
          lockId,
        ]);
        return rows[0] && lockFromRow(rows[0]);
      }),

    list: (filter) =>
      guarded(async () => {
        // Lock ids grow with time: newest first, and the page token.
        const { rows } = await pool.query<Row>(
          `SELECT * FROM locks
           WHERE ${visible} AND ($2::text IS NULL OR lock_id < $2) AND (NOT $3 OR state = 'active')
             AND ($4::text IS NULL OR (scope = 'task' AND subject = $4))
           ORDER BY lock_id DESC LIMIT $5`,
          [filter.tenant, filter.after ?? null, filter.inForce, filter.taskId ?? null, filter.pageSize + 1],
        );
        const items = rows.slice(0, filter.pageSize).map(lockFromRow);
        return { items, next: rows.length > filter.pageSize ? items.at(-1)!.lockId : undefined };
      }),
  };
}

async function place(pool: pg.Pool, lock: NewLock, most: number, event: AuditEvent) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await transaction(pool, async (client) => {
        const known = await byRequest(client, lock);
        if (known !== undefined) return { lock: known, placed: false };
        await closeGate(client, patience);
        return await insert(client, lock, most, event);
      });
    } catch (error) {
      if (attempt === attempts || !isGateBusy((error as Error).cause)) throw error;
    }
  }
}

async function byRequest(client: pg.ClientBase, lock: NewLock): Promise<Lock | undefined> {
  const { rows } = await client.query<Row>(
    'SELECT * FROM locks WHERE placed_in = $1 AND placed_by = $2 AND request_id = $3',
    [lock.placedIn, lock.placedBy, lock.requestId],
  );
  return rows[0] && lockFromRow(rows[0]);
}

/** One statement: everybody's writes wait for it. */
async function insert(client: pg.ClientBase, lock: NewLock, most: number, event: AuditEvent) {
  const [subject, tier, rootTaskId] = scopeColumns(lock.scope);
  const { rows } = await client.query<Row>(
    `WITH placed AS (
       INSERT INTO locks (tenant, lock_id, scope, subject, tier, root_task_id, reason, placed_in, placed_by, placed_at,
         request_id, expires_at, settle, people_to_lift)
       SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14
       WHERE (SELECT count(*) FROM locks l WHERE l.tenant = $1 AND l.state = 'active') < $15
       ON CONFLICT (placed_in, placed_by, request_id) DO NOTHING
       RETURNING *
     ), stepped AS (
       UPDATE lock_state SET epoch = epoch + 1 WHERE one AND EXISTS (SELECT FROM placed)
     ), logged AS (
       ${auditInsert} ${auditSelect} FROM ${auditUnnest(16)} WHERE EXISTS (SELECT FROM placed)
     )
     SELECT placed.*, pg_notify('${lockChannel}', '') FROM placed`,
    [
      lock.tenant,
      lock.lockId,
      lock.scope.kind,
      subject,
      tier,
      rootTaskId,
      lock.reason,
      lock.placedIn,
      lock.placedBy,
      new Date(lock.placedAt),
      lock.requestId,
      lock.expiresAt === undefined ? null : new Date(lock.expiresAt),
      lock.settle,
      lock.peopleToLift,
      most,
      ...auditColumns([event]),
    ],
  );
  if (rows[0] !== undefined) return { lock: lockFromRow(rows[0]), placed: true };
  // The same request on another replica was first.
  const known = await byRequest(client, lock);
  return known === undefined ? undefined : { lock: known, placed: false };
}

/** After a lock has ended nobody need wait: whoever decided before refuses what is allowed again, and looks anew. */
async function newEpoch(client: pg.ClientBase): Promise<void> {
  await client.query(`UPDATE lock_state SET epoch = epoch + 1 WHERE one`);
  await client.query(`SELECT pg_notify('${lockChannel}', '')`);
}

async function logged(client: pg.ClientBase, events: readonly AuditEvent[]): Promise<void> {
  await client.query(`${auditInsert} ${auditSelect} FROM ${auditUnnest(1)}`, auditColumns(events));
}
