import type pg from 'pg';
import type { AuditEvent } from '../domain/audit.ts';
import type { CloseCause, Task } from '../domain/model.ts';
import type { Instant } from '../domain/time.ts';
import { transaction } from './pool.ts';
import { auditInsert } from './rows.ts';
import { selfContainedEnd, selfContainedEvent } from './self-contained.ts';
import { taskById } from './task-rows.ts';
import { lockSubtree } from './task-tree.ts';
import { notifyTasks } from './wake.ts';

/**
 * The close (design §5), one transaction: after its commit no replica can write a lease for the subtree, because every
 * write holds its task's row FOR SHARE and asks for `open`.
 */
export async function closeTree(
  pool: pg.Pool,
  tenant: string,
  taskId: string,
  cause: CloseCause,
  now: Instant,
  event: AuditEvent,
): Promise<{ task: Task; changed: boolean } | undefined> {
  return await transaction(pool, async (client) => {
    const open = await lockSubtree(client, tenant, taskId);
    if (open === undefined) return undefined;
    if (open.length > 0) {
      await endTasks(client, tenant, open, { taskId, cause }, now, event);
      await notifyTasks(client, tenant, open);
    }
    const task = await taskById(client, tenant, taskId);
    return { task: task!, changed: open.length > 0 };
  });
}

/**
 * Ends open tasks whose rows the caller has locked. One statement, whatever their number, and nothing of them goes over
 * the wire but their ids.
 */
export async function endTasks(
  client: Pick<pg.ClientBase, 'query'>,
  tenant: string,
  open: readonly string[],
  top: { taskId: string; cause: CloseCause; below?: CloseCause },
  now: Instant,
  event: AuditEvent,
): Promise<void> {
  const { below = 'parent_closed' } = top;
  const end = selfContainedEnd('$5');
  await client.query({
    name: 'close-tasks',
    text: `WITH closed AS (
        -- By the database's clock, which all replicas share: another one may be the next to ask how long ago that was.
        UPDATE tasks SET state = 'closing', epoch = epoch + 1, closed_at = clock_timestamp(),
          close_cause = CASE WHEN task_id = $3 THEN $4 ELSE $10 END
        WHERE tenant = $1 AND task_id = ANY($2)
        RETURNING tenant, task_id
      ), feed AS (
        -- One entry per task that has self-contained tokens alive (their handle is empty): it kills them all.
        INSERT INTO revocations (tenant, task_id, revoked_at, forget_at)
        SELECT l.tenant, l.task_id, clock_timestamp(), max(l.expires_at)
        FROM closed c JOIN leases l ON l.tenant = c.tenant AND l.task_id = c.task_id
        WHERE l.handle = '' AND l.state <> 'settled' AND l.expires_at > $5
        GROUP BY l.tenant, l.task_id
      ), ended AS (
        -- A pending lease keeps its time: the issue that is under way settles it, or the end of its attempt does. A token
        -- has its end by the feed's entry, with which it commits: a second change of the row would cost as much as this one.
        UPDATE leases l
        SET settle_at = LEAST(l.settle_at, $5), settle_cause = COALESCE(l.settle_cause, 'closed'),
          state = CASE WHEN l.handle = '' THEN 'settled' ELSE 'settling' END,
          outcome = CASE WHEN l.handle = '' THEN ${end.outcome} END,
          dead_by = CASE WHEN l.handle = '' THEN ${end.deadBy} END,
          settled_at = CASE WHEN l.handle = '' THEN $5 END,
          settle_attempts = l.settle_attempts + CASE WHEN l.handle = '' THEN 1 ELSE 0 END
        FROM closed c WHERE l.tenant = c.tenant AND l.task_id = c.task_id AND l.state = 'active'
        RETURNING l.tenant, l.task_id, l.lease_id, l.state, l.tool, l.tier, l.outcome, l.settle_cause, l.dead_by
      ), settled AS (
        ${auditInsert} ${selfContainedEvent('$5')} FROM ended WHERE state = 'settled'
      )
      ${auditInsert}
      SELECT c.tenant, $6, $5, $7, c.task_id, NULL, CASE WHEN c.task_id = $3 THEN $8::json ELSE $9::json END FROM closed c`,
    values: [
      tenant,
      open,
      top.taskId,
      top.cause,
      new Date(now),
      event.kind,
      event.actor,
      JSON.stringify(event.detail),
      JSON.stringify({ ...event.detail, cause: below, closed: top.taskId }),
      below,
    ],
  });
}
