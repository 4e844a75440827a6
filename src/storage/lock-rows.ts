import type { Lock, LockScope } from '../domain/locks/model.ts';

type Row = Record<string, unknown>;

const time = (value: unknown) => (value === null ? undefined : (value as Date).getTime());
const text = (value: unknown) => (value === null ? undefined : (value as string));

export function lockFromRow(row: Row): Lock {
  return {
    tenant: row.tenant as string,
    lockId: row.lock_id as string,
    scope: scopeFromRow(row),
    reason: row.reason as string,
    placedIn: row.placed_in as string,
    placedBy: row.placed_by as string,
    placedAt: (row.placed_at as Date).getTime(),
    expiresAt: time(row.expires_at),
    settle: row.settle as boolean,
    settledAt: time(row.settled_at),
    peopleToLift: row.people_to_lift as number,
    state: row.state as Lock['state'],
    liftAskedBy: text(row.lift_asked_by),
    liftAskedAt: time(row.lift_asked_at),
    liftReason: row.lift_reason as string,
    endedBy: text(row.ended_by),
    endedAt: time(row.ended_at),
  };
}

function scopeFromRow(row: Row): LockScope {
  const subject = row.subject as string;
  switch (row.scope as LockScope['kind']) {
    case 'agent':
      return { kind: 'agent', agent: subject };
    case 'workload':
      return { kind: 'workload', pattern: subject };
    case 'tool':
      return { kind: 'tool', tool: subject, tier: text(row.tier) as (LockScope & { kind: 'tool' })['tier'] };
    case 'task':
      return { kind: 'task', taskId: subject, rootTaskId: row.root_task_id as string };
    case 'tenant':
      return { kind: 'tenant' };
    case 'all':
      return { kind: 'all' };
  }
}

/** `subject`, `tier` and `root_task_id`. */
export function scopeColumns(scope: LockScope): [subject: string, tier: string | null, rootTaskId: string | null] {
  switch (scope.kind) {
    case 'agent':
      return [scope.agent, null, null];
    case 'workload':
      return [scope.pattern, null, null];
    case 'tool':
      return [scope.tool, scope.tier ?? null, null];
    case 'task':
      return [scope.taskId, null, scope.rootTaskId];
    default:
      return ['', null, null];
  }
}

/** Of the lock in `$1` (tenant), `$2` (subject) and `$3` (tier): conditions on a task `t` and a lease `l`. */
export function reachOf(scope: LockScope): { tasks: string; leases: string } {
  const covers = (column: string) =>
    `CASE WHEN $2::text LIKE '%/*' THEN starts_with(${column}, left($2::text, -1)) ELSE ${column} = $2::text END`;
  // Named in every condition, so that one list of values fits all.
  const within = (table: string) =>
    `($1::text = '*' OR ${table}.tenant = $1::text) AND $2::text IS NOT NULL AND ($3::text IS NULL OR true)`;
  const [task, lease] = ((): [string, string] => {
    switch (scope.kind) {
      case 'agent':
        return ['t.agent = $2', 'l.agent = $2'];
      case 'workload':
        return [
          `(${covers('t.opener')} OR ${covers('t.agent_workload')})`,
          `(${covers('l.workload')} OR EXISTS (
            SELECT FROM tasks t WHERE t.tenant = l.tenant AND t.task_id = l.task_id AND ${covers('t.opener')}))`,
        ];
      case 'tool':
        return ['false', 'l.tool = $2 AND ($3::text IS NULL OR l.tier = $3)'];
      case 'task':
        return [`t.task_id IN (${tree})`, `l.task_id IN (${tree})`];
      default:
        return ['true', 'true'];
    }
  })();
  return { tasks: `${within('t')} AND ${task}`, leases: `${within('l')} AND ${lease}` };
}

const tree = `WITH RECURSIVE tree AS (
    SELECT task_id FROM tasks WHERE tenant = $1 AND task_id = $2
    UNION ALL
    SELECT c.task_id FROM tasks c JOIN tree p ON c.tenant = $1 AND c.parent_task_id = p.task_id
  ) SELECT task_id FROM tree`;
