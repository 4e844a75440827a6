import { canSee, opened, taskClosed, taskNotFound } from './access.ts';
import type { Caller } from './caller.ts';
import { tasksAbove } from './delegation/chain.ts';
import { BrokerError, fieldInvalid } from './errors.ts';
import type { DecisionFacts } from './facts.ts';
import type { NewId } from './ids.ts';
import { auditEvent } from './audit.ts';
import type { TaskCache } from './issue.ts';
import type { LockGuard } from './locks/guard.ts';
import type { Lock } from './locks/model.ts';
import type { CloseCause, Lease, LeaseSummary, Task, TaskNode, TaskState } from './model.ts';
import { createOpening, tooLong } from './opening.ts';
import type { PolicySource } from './policy.ts';
import type { LeaseStore, LeaseWriter, Page, TaskStore, TreeTotals, Wake } from './store.ts';
import type { Emit, Reached } from './telemetry.ts';
import type { Clock, Instant, Millis } from './time.ts';

export interface TaskView {
  task: Task;
  leases: Lease[];
  summary: LeaseSummary;
  /** Directly below it, oldest first. */
  children: TaskNode[];
}

/** What became of a task and of all below it. */
export interface TreeView extends TreeTotals {
  task: Task;
  leases: Lease[];
  tree: Page<TaskNode>;
}

export interface TasksOptions {
  clock: Clock;
  newId: NewId;
  policy: PolicySource;
  tasks: TaskStore;
  leases: LeaseStore;
  facts: DecisionFacts;
  cache: TaskCache;
  wake: Wake;
  locks: LockGuard;
  /** Audit events of what was not done. */
  record: LeaseWriter['record'];
  defaultTtl: Millis;
  maxTtl: Millis;
  /** Wakes this replica's settler. */
  kickSettler: () => void;
  sleep: (ms: Millis, signal: AbortSignal) => Promise<void>;
  /** Throws when this replica must not begin or prolong a task (its clock is off). */
  admit: () => void;
  reached: Reached;
  emit: Emit;
}

export type Tasks = ReturnType<typeof createTasks>;

/** How often a watcher looks although nothing woke it. */
const watchPoll: Millis = 1_000;
/** Most leases in one view; AdminService.ListLeases pages through more. */
const viewLimit = 1_000;
/** Most children in one view, and most tasks in the answer to a close; ListTaskTree pages through more. */
const childrenLimit = 100;
const treeLimit = 1_000;

export function createTasks(options: TasksOptions) {
  const { clock, tasks, leases, cache, emit } = options;

  return {
    open: createOpening(options),

    get: async (caller: Caller, taskId: string): Promise<TaskView> => await view(await visible(caller, taskId)),

    list: async (
      caller: Caller,
      filter: {
        states: readonly TaskState[];
        agent: string;
        parentTaskId: string | undefined;
        rootTaskId: string | undefined;
        labels: Task['labels'];
        pageSize: number;
        after: string | undefined;
      },
    ): Promise<Page<Task>> => {
      const base = { tenant: caller.tenant, states: filter.states, pageSize: filter.pageSize, after: filter.after };
      const wanted = {
        ...(filter.agent === '' ? {} : { agents: [filter.agent] }),
        ...(Object.keys(filter.labels).length === 0 ? {} : { labels: filter.labels }),
      };
      const { parentTaskId, rootTaskId } = filter;
      if (parentTaskId !== undefined || rootTaskId !== undefined) {
        // Who sees the task above sees what is below it.
        if (parentTaskId !== undefined) await visible(caller, parentTaskId);
        if (rootTaskId !== undefined) await visible(caller, rootTaskId);
        return await tasks.list({
          ...base,
          ...wanted,
          ...(parentTaskId === undefined ? {} : { parentTaskId }),
          ...(rootTaskId === undefined ? {} : { rootTaskId }),
        });
      }
      if (caller.roles.has('operator') || caller.roles.has('auditor')) return await tasks.list({ ...base, ...wanted });
      if (caller.roles.has('orchestrator')) {
        return await tasks.list({ ...base, ...wanted, opener: caller.workload });
      }
      const agents = [...caller.agents].filter((name) => filter.agent === '' || name === filter.agent);
      return await tasks.list({ ...base, agents, agentWorkload: caller.workload });
    },

    extend: async (caller: Caller, taskId: string, deadline: Instant, justification: string): Promise<Task> => {
      options.admit();
      const task = await own(caller, taskId);
      const now = clock.now();
      if (deadline <= now) throw fieldInvalid('deadline', 'lies in the past; to end the task call CloseTask');
      if (deadline > task.openedAt + options.maxTtl) throw tooLong('deadline', task.openedAt + options.maxTtl);
      const event = auditEvent(task, 'task.extended', caller.workload, now, {
        from: new Date(task.deadline).toISOString(),
        to: new Date(deadline).toISOString(),
        ...(justification === '' ? {} : { justification }),
      });
      if (task.state === 'open' && task.deadline === deadline) return task;
      // Those below that would last longer end then as well.
      const ofChild = (child: string, from: Instant) =>
        auditEvent({ ...task, taskId: child }, 'task.extended', caller.workload, now, {
          from: new Date(from).toISOString(),
          to: new Date(deadline).toISOString(),
          because: taskId,
        });
      const changed = task.state === 'open' ? await tasks.extend(task, deadline, event, ofChild) : undefined;
      if (changed === undefined) throw taskClosed((await tasks.get(task.tenant, taskId)) ?? task);
      if ('beyond' in changed) {
        const latest = new Date(changed.beyond).toISOString();
        throw fieldInvalid(
          'deadline',
          `is later than the parent's deadline, ${latest}: a child never outlives its parent; move the parent's first`,
        );
      }
      if ('earliest' in changed) throw outlived(changed.earliest);
      emit('task.extended', { tenant: task.tenant, taskId, deadline });
      return changed;
    },

    heartbeat: async (caller: Caller, taskId: string): Promise<Instant> => {
      options.admit();
      const task = await own(caller, taskId);
      if (task.heartbeatInterval === undefined) {
        throw fieldInvalid('task_id', 'this task was opened without heartbeat_interval; it needs no heartbeat');
      }
      const changed = await tasks.heartbeat(task, clock.now() + task.heartbeatInterval);
      if (changed?.heartbeatDue === undefined) throw taskClosed((await tasks.get(task.tenant, taskId)) ?? task);
      return changed.heartbeatDue;
    },

    close: async (
      caller: Caller,
      taskId: string,
      justification: string,
      wait: { until: Instant; signal: AbortSignal } | undefined,
    ): Promise<TreeView> => {
      const task = await tasks.get(caller.tenant, taskId);
      if (task === undefined || !(await mayClose(caller, task))) throw taskNotFound(taskId);
      const closed = await closeNow(task, 'requested', caller.workload, justification);
      return await treeView(wait === undefined ? closed : await whenSettled(closed, wait));
    },

    tree: async (
      caller: Caller,
      taskId: string,
      page: { limit: number; after: string | undefined },
    ): Promise<Page<TaskNode>> => await tasks.tree(await visible(caller, taskId), page),

    /** Deadline passed, or the opener went silent. */
    closeDue: async (limit: number): Promise<number> => {
      const due = await tasks.due(clock.now(), limit);
      for (const { tenant, taskId, cause } of due) await closeNow({ tenant, taskId }, cause, 'broker', '');
      return due.length;
    },

    /** What is open under a lock. */
    closeLocked: async (task: Pick<Task, 'tenant' | 'taskId'>, lock: Lock): Promise<Task> =>
      await closeNow(task, 'locked', 'broker', '', { lock: lock.lockId }),

    watch: async function* (caller: Caller, taskId: string, signal: AbortSignal): AsyncIterable<TaskView> {
      let task = await visible(caller, taskId);
      let last = '';
      for (;;) {
        const current = await view(task);
        // A heartbeat moves only what no watcher is shown.
        const shape = JSON.stringify({ ...current, task: { ...current.task, heartbeatDue: undefined } });
        if (shape !== last) yield current;
        last = shape;
        if (current.task.settledAt !== undefined || signal.aborted) return;
        await changed(task, watchPoll, signal);
        if (signal.aborted) return;
        task = await visible(caller, taskId);
      }
    },

    /** For others who answer about a task (audit). */
    visible,
  };

  async function visible(caller: Caller, taskId: string): Promise<Task> {
    const task = await tasks.get(caller.tenant, taskId);
    if (task === undefined || !(canSee(caller, task) || (await seesFromAbove(caller, task))))
      throw taskNotFound(taskId);
    return task;
  }

  /** Whoever has a hand in a task sees what becomes of it below. */
  async function seesFromAbove(caller: Caller, task: Task): Promise<boolean> {
    return (await tasksAbove(tasks.get, task)).some((one) => canSee(caller, one));
  }

  async function mayClose(caller: Caller, task: Task): Promise<boolean> {
    if (opened(caller, task) || caller.roles.has('operator')) return true;
    return (await tasksAbove(tasks.get, task)).some((one) => opened(caller, one));
  }

  async function own(caller: Caller, taskId: string): Promise<Task> {
    const task = await tasks.get(caller.tenant, taskId);
    if (task === undefined || !opened(caller, task)) throw taskNotFound(taskId);
    return task;
  }

  async function view(task: Task): Promise<TaskView> {
    const { tenant, taskId } = task;
    const [list, summary, children] = await Promise.all([
      leases.ofTask(tenant, taskId, viewLimit),
      leases.summary(tenant, taskId),
      tasks.tree(task, { levels: 1, limit: childrenLimit, after: taskId }),
    ]);
    return { task, leases: list, summary, children: children.items };
  }

  async function treeView(task: Task): Promise<TreeView> {
    const { tenant, taskId } = task;
    const [list, tree] = await Promise.all([
      leases.ofTask(tenant, taskId, viewLimit),
      tasks.tree(task, { limit: treeLimit, after: undefined }),
    ]);
    // A tree is walked once, or for a large one twice, and never by several connections at the same time.
    const totals = tree.next === undefined ? totalsOf(tree.items) : await tasks.treeTotals(task);
    return { task, leases: list, tree, ...totals };
  }

  async function closeNow(
    task: Pick<Task, 'tenant' | 'taskId'>,
    cause: CloseCause,
    actor: string,
    justification: string,
    detail: Record<string, unknown> = {},
  ): Promise<Task> {
    const now = clock.now();
    const event = auditEvent(task, 'task.closed', actor, now, {
      cause,
      ...detail,
      ...(justification === '' ? {} : { justification }),
    });
    const result = await tasks.close(task.tenant, task.taskId, cause, now, event);
    if (result === undefined) throw taskNotFound(task.taskId);
    options.reached('close.committed');
    if (result.changed) {
      emit('task.closing', { tenant: task.tenant, taskId: task.taskId, cause });
      options.kickSettler();
    }
    void cache.refresh(task.tenant, task.taskId);
    return result.task;
  }

  /** A task is settled when all below it are; those below one that was settled before are looked at as well. */
  async function whenSettled(task: Task, wait: { until: Instant; signal: AbortSignal }): Promise<Task> {
    let current = task;
    while (!wait.signal.aborted) {
      if (current.settledAt !== undefined && (await tasks.isTreeSettled(current))) break;
      const left = wait.until - clock.now();
      if (left <= 0) break;
      await changed(current, Math.min(left, 200), wait.signal);
      current = (await tasks.get(task.tenant, task.taskId)) ?? current;
    }
    return current;
  }

  /** Resolves when the task was changed by any replica, after `atMost`, or when the signal aborts. */
  async function changed(task: Task, atMost: Millis, signal: AbortSignal): Promise<void> {
    const stop = new AbortController();
    const off = options.wake.onTask((tenant, taskId) => {
      if (tenant === task.tenant && taskId === task.taskId) stop.abort();
    });
    try {
      await options.sleep(atMost, AbortSignal.any([signal, stop.signal]));
    } finally {
      off();
    }
  }
}

function totalsOf(nodes: readonly TaskNode[]): TreeTotals {
  const summary: LeaseSummary = { unsettled: 0, revoked: 0, expired: 0, returned: 0, bounded: 0, irrevocable: 0 };
  for (const node of nodes) {
    for (const outcome of Object.keys(summary) as (keyof LeaseSummary)[]) summary[outcome] += node.summary[outcome];
  }
  return {
    tasks: nodes.length,
    unsettledTasks: nodes.filter(({ task }) => task.settledAt === undefined).length,
    summary,
  };
}

/** A deadline that cannot be held is not recorded: it is a ceiling for every credential of its task (design §3.4). */
function outlived(earliest: Instant): BrokerError {
  const time = new Date(earliest).toISOString();
  return new BrokerError(
    'DEADLINE_TOO_CLOSE',
    `deadline: the task has a credential that cannot be revoked and lives until ${time}: choose that or later, or call CloseTask, which ends all others at once`,
    { metadata: { earliest: time } },
  );
}
