import type pg from 'pg';
import type { HandoverStore } from '../domain/handover.ts';
import { cancelOfTask } from './approval-store.ts';
import { endTasks } from './close-tree.ts';
import type { Outbox } from './notification-store.ts';
import { transaction } from './pool.ts';
import { auditColumns, auditInsert, auditSelect, auditUnnest, taskFromRow } from './rows.ts';
import { taskById } from './task-rows.ts';
import { isPastDeadline, lockSubtree } from './task-tree.ts';
import { notifyTasks } from './wake.ts';

type Row = Record<string, unknown>;

export function createHandoverStore(pool: pg.Pool, outbox: Outbox): HandoverStore {
  return {
    handOver: async (task, to, requestId, now, event, cancel) =>
      await transaction(pool, async (client) => {
        const { tenant, taskId } = task;
        const at = new Date(now);
        const open = (await lockSubtree(client, tenant, taskId)) ?? [];
        // The primary key of audit_events: the events of one task. The row is locked: no other call is in between.
        const done = await client.query<{ closed: number; ended: number }>(
          `SELECT (detail ->> 'closed_tasks')::int AS closed, (detail ->> 'ended_leases')::int AS ended
           FROM audit_events WHERE tenant = $1 AND task_id = $2 AND kind = 'task.handed_over' AND detail ->> 'request_id' = $3`,
          [tenant, taskId, requestId],
        );
        if (done.rows[0] !== undefined) {
          const task = await taskById(client, tenant, taskId);
          const { closed, ended } = done.rows[0];
          return { task: task!, changed: false, closedTasks: closed, endedLeases: ended };
        }
        if (open[0] !== taskId || (await isPastDeadline(client, tenant, taskId))) return undefined;
        const below = open.slice(1);
        if (below.length > 0) {
          const closing = { ...event, kind: 'task.closed' as const, detail: {} };
          await endTasks(client, tenant, below, { taskId, cause: 'handed_over', below: 'handed_over' }, now, closing);
        }
        // What the one before holds: its tokens are on the feed with this commit, one by one, because the task goes on.
        const { rowCount } = await client.query(
          `WITH ended AS (
            UPDATE leases SET settle_at = LEAST(settle_at, $3), settle_cause = 'handed_over', state = 'settling'
            WHERE tenant = $1 AND task_id = $2 AND state = 'active'
            RETURNING tenant, lease_id, handle, expires_at
          ), feed AS (
            INSERT INTO revocations (tenant, lease_id, revoked_at, forget_at)
            SELECT tenant, lease_id, clock_timestamp(), expires_at FROM ended WHERE handle = '' AND expires_at > $3
          )
          SELECT lease_id FROM ended`,
          [tenant, taskId, at],
        );
        const { rows } = await client.query(
          `UPDATE tasks SET agent = $3, agent_workload = $4, epoch = epoch + 1 WHERE tenant = $1 AND task_id = $2
           RETURNING *`,
          [tenant, taskId, to.agent, to.workload],
        );
        await cancelOfTask(client, outbox, tenant, taskId, cancel);
        const counts = { closedTasks: below.length, endedLeases: rowCount ?? 0 };
        const detail = { ...event.detail, closed_tasks: counts.closedTasks, ended_leases: counts.endedLeases };
        await client.query(
          `${auditInsert} ${auditSelect} FROM ${auditUnnest(1)}`,
          auditColumns([{ ...event, detail }]),
        );
        await notifyTasks(client, tenant, open);
        return { task: taskFromRow(rows[0] as Row), changed: true, ...counts };
      }),
  };
}
