import type pg from 'pg';
import type { Millis } from '../domain/time.ts';

/*
 * How a lock is in force on every replica when the transaction that placed it has committed.
 *
 * `lock_state` holds one number, the epoch, which changes with every lock that is placed or ends. A replica decides by the
 * locks as of one epoch and says in its write which one that was; the write is only made while the epoch stands.
 *
 * Comparing alone would not do: a statement that took its snapshot before the lock's commit still sees the old epoch, and
 * may commit long after it. So the statement also mentions `lock_gate` FOR KEY SHARE, an empty table: it locks no row, but
 * takes the table's lock in ROW SHARE mode until the end of its transaction, and whoever places a lock first takes the same
 * table's lock in EXCLUSIVE mode, which conflicts. Each write is then on one of two sides:
 *
 * - It had its table lock first. Then LOCK TABLE waits until that transaction is over: it committed before the lock did.
 * - It got its table lock afterwards. PostgreSQL takes the locks of a statement's tables when it takes up the plan, before
 *   it takes the snapshot that the plan runs under (exec_bind_message, PortalStart; under READ COMMITTED each statement has
 *   its own). The snapshot is thus younger than the lock's commit, the new epoch is seen, and nothing is written.
 *
 * There is no third side, on any number of replicas, and nothing depends on a notification. test/locks/gate.test.ts drives
 * both sides and their race.
 *
 * Why not something else:
 * - A row that all replicas hold FOR SHARE: each flush would write to the one hot row (xmax, WAL, and a multixact whenever
 *   two replicas overlap), and sharers that find compatible sharers jump the queue, so under load an UPDATE may never get in.
 *   Table locks are queued fairly: whoever places a lock waits for what is under way and for nothing that comes later.
 * - Advisory locks are taken by the statement itself, after its snapshot: it would go on to read the old epoch.
 * - ACCESS SHARE, which a plain SELECT takes, against ACCESS EXCLUSIVE: a backup holds the former for hours.
 *
 * ROW SHARE is taken in the backend's own fast path, without the shared lock table: the hot path pays for two look-ups in
 * tables of one and no rows, and writes nothing more.
 */

/** True while no lock was placed or ended since the epoch in this parameter. Evaluated once for a statement. */
export function atLockEpoch(parameter: string): string {
  return `${parameter}::int8 = (
    SELECT s.epoch FROM lock_state s WHERE s.one AND NOT EXISTS (SELECT FROM lock_gate g WHERE g.one FOR KEY SHARE))`;
}

/** Between this and the end of the transaction nothing is written that was decided before. */
export async function closeGate(client: Pick<pg.ClientBase, 'query'>, patience: Millis): Promise<void> {
  await client.query(`SET LOCAL lock_timeout = ${Math.trunc(patience)}`);
  await client.query('LOCK TABLE lock_gate IN EXCLUSIVE MODE');
}

/** Whoever waits for the gate holds up all who come after: after a while it is let go, and tried again. */
export function isGateBusy(error: unknown): boolean {
  return (error as { code?: unknown }).code === '55P03'; // lock_not_available
}
