import type pg from 'pg';
import type { Task } from '../domain/model.ts';
import type { NewTask } from '../domain/store.ts';
import { taskFromRow } from './rows.ts';

/** In the order of `taskValues`. */
export const taskColumns = `tenant, task_id, root_task_id, parent_task_id, request_id, request_digest, intent, agent, opener,
  agent_workload, tools, context, opened_at, deadline, heartbeat_ms, heartbeat_due, status_index, labels`;

export function taskValues(task: NewTask, statusIndex: number): unknown[] {
  const { heartbeatInterval } = task;
  return [
    task.tenant,
    task.taskId,
    task.rootTaskId,
    task.parentTaskId ?? null,
    task.requestId,
    task.requestDigest,
    task.intent,
    task.agent,
    task.opener,
    task.agentWorkload ?? null,
    JSON.stringify(task.tools),
    JSON.stringify(task.context),
    new Date(task.openedAt),
    new Date(task.deadline),
    heartbeatInterval ?? null,
    heartbeatInterval === undefined ? null : new Date(task.openedAt + heartbeatInterval),
    statusIndex,
    JSON.stringify(task.labels),
  ];
}

export async function taskByRequest(
  client: Pick<pg.ClientBase, 'query'> | pg.Pool,
  tenant: string,
  opener: string,
  requestId: string,
): Promise<{ task: Task; requestDigest: string } | undefined> {
  const { rows } = await client.query({
    name: 'task-by-request',
    text: 'SELECT * FROM tasks WHERE tenant = $1 AND opener = $2 AND request_id = $3',
    values: [tenant, opener, requestId],
  });
  const row = rows[0] as Record<string, unknown> | undefined;
  return row && { task: taskFromRow(row), requestDigest: row['request_digest'] as string };
}

export async function taskById(
  client: Pick<pg.ClientBase, 'query'> | pg.Pool,
  tenant: string,
  taskId: string,
): Promise<Task | undefined> {
  const { rows } = await client.query({
    name: 'get-task',
    text: 'SELECT * FROM tasks WHERE tenant = $1 AND task_id = $2',
    values: [tenant, taskId],
  });
  return rows[0] && taskFromRow(rows[0] as Record<string, unknown>);
}
