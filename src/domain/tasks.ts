import { canSee, opened, taskClosed, taskNotFound } from './access.ts';
import type { Caller } from './caller.ts';
import { plan as planned, type PlannedDecision } from './decision.ts';
import { BrokerError, fieldInvalid } from './errors.ts';
import { nothingYet, type DecisionFacts, type Facts } from './facts.ts';
import type { NewId } from './ids.ts';
import { auditEvent } from './audit.ts';
import type { TaskCache } from './issue.ts';
import type { CloseCause, Lease, LeaseSummary, Task, TaskState, ToolAccess } from './model.ts';
import type { PolicyRevision, PolicySource } from './policy.ts';
import type { LeaseStore, Page, TaskStore, Wake } from './store.ts';
import type { Emit, Reached } from './telemetry.ts';
import type { Clock, Instant, Millis } from './time.ts';

export interface OpenRequest {
  requestId: string;
  /** Digest of the request's content, for telling a retry from a mistake. */
  requestDigest: string;
  intent: string;
  agent: string;
  agentWorkload: string | undefined;
  tools: readonly ToolAccess[];
  context: Readonly<Record<string, string>>;
  deadline: Instant | undefined;
  ttl: Millis | undefined;
  heartbeatInterval: Millis | undefined;
}

export interface PlannedAccess {
  access: ToolAccess;
  decision: PlannedDecision;
}

export interface TaskView {
  task: Task;
  leases: Lease[];
  summary: LeaseSummary;
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

export function createTasks(options: TasksOptions) {
  const { clock, tasks, leases, cache, policy, emit } = options;

  return {
    open: async (caller: Caller, request: OpenRequest) => {
      options.admit();
      const now = clock.now();
      const revision = policy.current();
      let task: ReturnType<typeof newTask>;
      try {
        task = newTask(caller, request, now, revision);
      } catch (error) {
        // What made sense when it was first sent may not now (its deadline passed, a tool was taken out): a retry still
        // gets its task.
        const earlier = await tasks.byRequest(caller.tenant, caller.workload, request.requestId);
        if (earlier?.requestDigest !== request.requestDigest) throw error;
        return { task: earlier.task, plan: await planAsOf(revision, earlier.task, now), revision: revision.digest };
      }
      const plan = planOf(revision, task, now, () => (task.parentTaskId === undefined ? nothingYet : undefined));
      const event = auditEvent(task, 'task.opened', caller.workload, now, {
        intent: task.intent,
        agent: task.agent,
        agent_workload: task.agentWorkload,
        context: task.context,
        deadline: new Date(task.deadline).toISOString(),
        policy_revision: revision.digest,
        plan: plan.map(({ access, decision }) => ({
          ...access,
          effect: decision.effect,
          rule: decision.rule,
          reason: decision.reason,
          ...(decision.effect === 'depends' ? { depends_on: decision.dependsOn } : {}),
        })),
      });
      const { requestId, requestDigest } = request;
      const result = await tasks.insert({ ...task, requestId, requestDigest }, [event]);
      if (result.requestDigest !== requestDigest) {
        throw new BrokerError('REQUEST_ID_REUSED', 'this request_id opened another task: send a new one');
      }
      if (result.inserted) {
        const { tenant, taskId, agent, opener, tools } = task;
        emit('task.opened', { tenant, taskId, agent, opener, tools: tools.length });
      }
      // A retry gets the task as it is now, and a plan as of now.
      return {
        task: result.task,
        plan: result.inserted ? plan : await planAsOf(revision, result.task, now),
        revision: revision.digest,
      };
    },

    get: async (caller: Caller, taskId: string): Promise<TaskView> => await view(await visible(caller, taskId)),

    list: async (
      caller: Caller,
      filter: { states: readonly TaskState[]; agent: string; pageSize: number; after: string | undefined },
    ): Promise<Page<Task>> => {
      const base = { tenant: caller.tenant, states: filter.states, pageSize: filter.pageSize, after: filter.after };
      const wanted = filter.agent === '' ? {} : { agents: [filter.agent] };
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
      const changed = task.state === 'open' ? await tasks.extend(task, deadline, event) : undefined;
      if (changed === undefined) throw taskClosed((await tasks.get(task.tenant, taskId)) ?? task);
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
    ): Promise<TaskView> => {
      const task = await tasks.get(caller.tenant, taskId);
      if (task === undefined || !(opened(caller, task) || caller.roles.has('operator'))) throw taskNotFound(taskId);
      const closed = await closeNow(task, 'requested', caller.workload, justification);
      if (wait === undefined) return await view(closed);
      return await whenSettled(closed, wait);
    },

    /** Deadline passed, or the opener went silent. */
    closeDue: async (limit: number): Promise<number> => {
      const due = await tasks.due(clock.now(), limit);
      for (const { tenant, taskId, cause } of due) await closeNow({ tenant, taskId }, cause, 'broker', '');
      return due.length;
    },

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

  function newTask(
    caller: Caller,
    request: OpenRequest,
    now: Instant,
    revision: PolicyRevision,
  ): Parameters<TaskStore['insert']>[0] & Task {
    const agent = revision.agents.get(request.agent);
    if (agent === undefined) {
      throw new BrokerError('NAME_UNKNOWN', `agent: no agent ${request.agent} is registered; see the Agent documents`, {
        violations: [{ field: 'agent', description: 'not registered' }],
      });
    }
    for (const [index, access] of request.tools.entries()) {
      if (revision.tools.get(access.tool)?.tiers[access.tier] === undefined) {
        const field = `tools[${index}]`;
        throw new BrokerError(
          'NAME_UNKNOWN',
          `${field}: ${access.tool}:${access.tier} is not registered; see \`leasehold tool list\``,
          {
            violations: [{ field, description: 'not registered' }],
          },
        );
      }
    }
    if (request.agentWorkload !== undefined && !revision.agentsOf(request.agentWorkload).has(request.agent)) {
      throw fieldInvalid('agent_workload', `is not a workload of agent ${request.agent}`);
    }
    const deadline = request.deadline ?? now + (request.ttl ?? options.defaultTtl);
    const field = request.deadline === undefined ? 'ttl' : 'deadline';
    if (deadline < now + 1_000) throw fieldInvalid(field, 'leaves the task less than one second');
    if (deadline > now + options.maxTtl) throw tooLong(field, now + options.maxTtl);
    const taskId = options.newId('tsk');
    return {
      tenant: caller.tenant,
      taskId,
      rootTaskId: taskId,
      parentTaskId: undefined,
      requestId: request.requestId,
      requestDigest: request.requestDigest,
      intent: request.intent,
      agent: request.agent,
      opener: caller.workload,
      agentWorkload: request.agentWorkload,
      tools: request.tools,
      context: request.context,
      state: 'open',
      closeCause: undefined,
      openedAt: now,
      deadline,
      closedAt: undefined,
      settledAt: undefined,
      heartbeatInterval: request.heartbeatInterval,
      heartbeatDue: undefined,
      epoch: 1,
      statusIndex: 0,
    };
  }

  /** `factsOf`: what storage knows already; undefined where that has to be left open. */
  function planOf(
    revision: PolicyRevision,
    task: Task,
    now: Instant,
    factsOf: (access: ToolAccess) => Facts | undefined,
  ): PlannedAccess[] {
    const ended = { effect: 'deny', rule: '', reason: 'the task has ended' } as const;
    return task.tools.map((access) => ({
      access,
      decision:
        task.state !== 'open'
          ? ended
          : planned(revision, task, access, { workload: task.agentWorkload, now, facts: factsOf(access) }),
    }));
  }

  /** Of a task that may hold something by now. What others do in the meantime stays open. */
  async function planAsOf(revision: PolicyRevision, task: Task, now: Instant): Promise<PlannedAccess[]> {
    const known = new Map<ToolAccess, Facts>();
    if (task.state === 'open') {
      for (const access of task.tools) {
        const needs = revision.needs(task.agent, access, false);
        known.set(
          access,
          needs === undefined ? nothingYet : await options.facts.load(task, access, { ...needs, rates: [] }, now),
        );
      }
    }
    return planOf(revision, task, now, (access) => known.get(access));
  }

  async function visible(caller: Caller, taskId: string): Promise<Task> {
    const task = await tasks.get(caller.tenant, taskId);
    if (task === undefined || !canSee(caller, task)) throw taskNotFound(taskId);
    return task;
  }

  async function own(caller: Caller, taskId: string): Promise<Task> {
    const task = await tasks.get(caller.tenant, taskId);
    if (task === undefined || !opened(caller, task)) throw taskNotFound(taskId);
    return task;
  }

  async function view(task: Task): Promise<TaskView> {
    const list = await leases.ofTask(task.tenant, task.taskId, viewLimit);
    const whole = task.rootTaskId === task.taskId ? { rootTaskId: task.taskId } : [task.taskId];
    return { task, leases: list, summary: await leases.summary(task.tenant, whole) };
  }

  async function closeNow(
    task: Pick<Task, 'tenant' | 'taskId'>,
    cause: CloseCause,
    actor: string,
    justification: string,
  ): Promise<Task> {
    const now = clock.now();
    const event = auditEvent(task, 'task.closed', actor, now, {
      cause,
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

  async function whenSettled(task: Task, wait: { until: Instant; signal: AbortSignal }): Promise<TaskView> {
    let current = task;
    while (current.settledAt === undefined && !wait.signal.aborted) {
      const left = wait.until - clock.now();
      if (left <= 0) break;
      await changed(current, Math.min(left, 200), wait.signal);
      current = (await tasks.get(task.tenant, task.taskId)) ?? current;
    }
    return await view(current);
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

function tooLong(field: string, latest: Instant): BrokerError {
  return fieldInvalid(field, `is later than a task may last here; the latest is ${new Date(latest).toISOString()}`);
}
