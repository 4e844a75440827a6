import { actsAsAgent, opened, taskClosed, taskNotFound } from './access.ts';
import { auditEvent } from './audit.ts';
import type { Caller } from './caller.ts';
import { plan as planned, type PlannedDecision } from './decision.ts';
import { aboveWith, mostInTree, tasksAbove } from './delegation/chain.ts';
import { checkChild, childRefused, usualChildDeadline } from './delegation/child.ts';
import { BrokerError, fieldInvalid } from './errors.ts';
import { nothingYet, noNeeds, ownNothingYet, type DecisionFacts, type Facts } from './facts.ts';
import { createAdmission } from './locks/admission.ts';
import type { LockGuard } from './locks/guard.ts';
import type { NewId } from './ids.ts';
import type { Task, ToolAccess } from './model.ts';
import type { PolicyRevision, PolicySource } from './policy.ts';
import type { InsertedTask, LeaseWriter, NewTask, TaskStore } from './store.ts';
import type { Emit } from './telemetry.ts';
import type { Clock, Instant, Millis } from './time.ts';

export interface OpenRequest {
  requestId: string;
  /** Digest of the request's content, for telling a retry from a mistake. */
  requestDigest: string;
  parentTaskId: string | undefined;
  intent: string;
  agent: string;
  agentWorkload: string | undefined;
  tools: readonly ToolAccess[];
  context: Readonly<Record<string, string>>;
  labels: Readonly<Record<string, string>>;
  deadline: Instant | undefined;
  ttl: Millis | undefined;
  heartbeatInterval: Millis | undefined;
}

export interface PlannedAccess {
  access: ToolAccess;
  decision: PlannedDecision;
}

export interface OpenedTask {
  task: Task;
  plan: PlannedAccess[];
  revision: string;
}

export interface OpeningOptions {
  clock: Clock;
  newId: NewId;
  policy: PolicySource;
  tasks: Pick<TaskStore, 'get' | 'byRequest' | 'insert' | 'insertBelow' | 'pinAgent'>;
  facts: DecisionFacts;
  locks: LockGuard;
  /** Audit events of what was not done. */
  record: LeaseWriter['record'];
  defaultTtl: Millis;
  maxTtl: Millis;
  /** Throws when this replica must not begin a task (its clock is off). */
  admit: () => void;
  emit: Emit;
}

type Above = readonly [Task, ...Task[]];
type Drafted = Omit<NewTask, 'requestId' | 'requestDigest' | 'lockEpoch'> & Task;

/** A parent, or locks, that change each time they are looked at are not looked at for ever. */
const maxRounds = 8;

export function createOpening(options: OpeningOptions) {
  const { clock, tasks, policy } = options;
  const admission = createAdmission(options);

  return async (caller: Caller, request: OpenRequest): Promise<OpenedTask> => {
    options.admit();
    const now = clock.now();
    const revision = policy.current(caller.tenant);
    const { requestId, requestDigest } = request;
    let written: InsertedTask & { above: readonly Task[]; plan?: PlannedAccess[] };
    try {
      written = await write(caller, request, now, revision);
    } catch (error) {
      // What made sense when it was first sent may not now (its deadline passed, a tool was taken out, its parent has
      // ended): a retry still gets its task.
      const earlier = await tasks.byRequest(caller.tenant, caller.workload, requestId);
      if (earlier?.requestDigest !== requestDigest) {
        await admission.refused(caller, error, now);
        throw error;
      }
      written = { ...earlier, inserted: false, above: await tasksAbove(tasks.get, earlier.task) };
    }
    if (written.requestDigest !== requestDigest) {
      throw new BrokerError('REQUEST_ID_REUSED', 'this request_id opened another task: send a new one');
    }
    const { task, above } = written;
    if (written.inserted) {
      const { tenant, taskId, agent, opener, tools } = task;
      options.emit('task.opened', { tenant, taskId, agent, opener, tools: tools.length });
    }
    // A retry gets the task as it is now, and a plan as of now.
    const plan =
      written.plan ?? (await admission.planned(task, await planAsOf(options.facts, revision, task, above, now)));
    return { task, plan, revision: revision.digest };
  };

  async function write(caller: Caller, request: OpenRequest, now: Instant, revision: PolicyRevision) {
    const { requestId, requestDigest } = request;
    if (request.parentTaskId === undefined) {
      if (!caller.roles.has('orchestrator')) {
        throw new BrokerError(
          'ROLE_REQUIRED',
          'a task at the top of a tree is opened by an orchestrator; an agent opens one below a task of its own, and names it as parent_task_id',
          { metadata: { roles: 'orchestrator' } },
        );
      }
      const task = draft(caller, request, now, revision, undefined);
      const facts = await firstFacts(options.facts, revision, task, now);
      for (let round = 0; round < maxRounds; round++) {
        const lockEpoch = await admission.epochFor(task);
        const plan = await admission.planned(task, planOf(revision, task, [], now, facts));
        const event = openedEvent(task, caller, now, revision, plan);
        const result = await tasks.insert({ ...task, requestId, requestDigest, lockEpoch }, [event]);
        if (!('refused' in result)) return { ...result, above: [], ...(result.inserted ? { plan } : {}) };
        await admission.look(task);
      }
      throw admission.unsteady();
    }
    for (let round = 0; round < maxRounds; round++) {
      const parent = await parentFor(caller, request.parentTaskId);
      const above: Above = [parent, ...(await tasksAbove(tasks.get, parent))];
      const task = draft(caller, request, now, revision, parent);
      const asked = request.deadline ?? (request.ttl === undefined ? undefined : now + request.ttl);
      const field = request.deadline === undefined ? 'ttl' : 'deadline';
      const { maxOpenChildren } = checkChild(
        revision,
        { ...task, deadline: asked === undefined ? undefined : { at: asked, field } },
        above,
        now,
      );
      const lockEpoch = await admission.epochFor(task);
      // What the tree holds stays open.
      const plan = await admission.planned(
        task,
        planOf(revision, task, above, now, await firstFacts(options.facts, revision, task, now)),
      );
      const result = await tasks.insertBelow(
        { ...task, requestId, requestDigest, lockEpoch },
        [openedEvent(task, caller, now, revision, plan)],
        above,
        { openChildren: maxOpenChildren, openInTree: mostInTree },
      );
      if (!('refused' in result)) return { ...result, above, ...(result.inserted ? { plan } : {}) };
      // A task above was closed, or its deadline moved ahead, since it was looked at: what it says now is told.
      if (result.refused === 'children' || result.refused === 'tree') {
        throw childRefused(result.refused, parent, maxOpenChildren);
      }
      if (result.refused === 'locks') await admission.look(task);
    }
    throw taskClosed({ taskId: request.parentTaskId, closeCause: undefined });
  }

  /** The parent's agent, whose attestation this call is, or whoever opened the parent. */
  async function parentFor(caller: Caller, taskId: string): Promise<Task> {
    const parent = await tasks.get(caller.tenant, taskId);
    if (parent === undefined || !(actsAsAgent(caller, parent) || opened(caller, parent))) throw taskNotFound(taskId);
    if (parent.agentWorkload !== undefined || parent.state !== 'open' || !actsAsAgent(caller, parent)) return parent;
    const event = auditEvent(parent, 'task.agent_pinned', caller.workload, clock.now(), { workload: caller.workload });
    await tasks.pinAgent(parent, caller.workload, event);
    return await parentFor(caller, taskId);
  }

  function draft(
    caller: Caller,
    request: OpenRequest,
    now: Instant,
    revision: PolicyRevision,
    parent: Task | undefined,
  ): Drafted {
    if (!revision.agents.has(request.agent)) {
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
    const usual = parent === undefined ? now + options.defaultTtl : usualChildDeadline(parent, now, options.defaultTtl);
    const deadline = request.deadline ?? (request.ttl === undefined ? usual : now + request.ttl);
    const field = request.deadline === undefined ? 'ttl' : 'deadline';
    if (deadline < now + 1_000) throw fieldInvalid(field, 'leaves the task less than one second');
    if (deadline > now + options.maxTtl) throw tooLong(field, now + options.maxTtl);
    const taskId = options.newId('tsk', parent?.taskId);
    return {
      tenant: caller.tenant,
      taskId,
      rootTaskId: parent?.rootTaskId ?? taskId,
      parentTaskId: parent?.taskId,
      intent: request.intent,
      agent: request.agent,
      opener: caller.workload,
      agentWorkload: request.agentWorkload,
      tools: request.tools,
      context: request.context,
      labels: request.labels,
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
}

function openedEvent(
  task: Task,
  caller: Caller,
  now: Instant,
  revision: PolicyRevision,
  plan: readonly PlannedAccess[],
) {
  return auditEvent(task, 'task.opened', caller.workload, now, {
    intent: task.intent,
    ...(task.parentTaskId === undefined ? {} : { parent: task.parentTaskId, root: task.rootTaskId }),
    agent: task.agent,
    agent_workload: task.agentWorkload,
    context: task.context,
    ...(Object.keys(task.labels).length === 0 ? {} : { labels: task.labels }),
    deadline: new Date(task.deadline).toISOString(),
    policy_revision: revision.digest,
    plan: planDetail(plan),
  });
}

/** As audit events tell a plan. */
export function planDetail(plan: readonly PlannedAccess[]) {
  return plan.map(({ access, decision }) => ({
    ...access,
    effect: decision.effect,
    rule: decision.rule,
    reason: decision.reason,
    ...(decision.hop === undefined ? {} : { decided_by: decision.hop }),
    ...(decision.effect === 'depends' ? { depends_on: decision.dependsOn } : {}),
  }));
}

/** `factsOf`: what storage knows already; undefined where that has to be left open. */
function planOf(
  revision: PolicyRevision,
  task: Task,
  above: readonly Task[],
  now: Instant,
  factsOf: (access: ToolAccess) => Facts | undefined,
): PlannedAccess[] {
  const ended = { effect: 'deny', rule: '', reason: 'the task has ended' } as const;
  const hops = task.parentTaskId === undefined ? undefined : above.map((one) => aboveWith(one, undefined, now));
  return task.tools.map((access) => ({
    access,
    decision:
      task.state !== 'open'
        ? ended
        : planned(revision, task, access, {
            workload: task.agentWorkload,
            now,
            facts: factsOf(access),
            above: hops,
          }),
  }));
}

/** Of a task that is about to be opened: a root holds nothing, and what is said of its agent and tools is known. */
async function firstFacts(
  facts: DecisionFacts,
  revision: PolicyRevision,
  task: Task,
  now: Instant,
): Promise<(access: ToolAccess) => Facts | undefined> {
  const base = task.parentTaskId === undefined ? nothingYet : ownNothingYet;
  const known = new Map<ToolAccess, Facts>();
  for (const access of task.tools) {
    if (revision.needs(task.agent, access, false, 0)?.signals !== true) continue;
    known.set(access, { ...(await facts.load(task, access, { ...noNeeds, signals: true }, now)), ...base });
  }
  return (access) => known.get(access) ?? base;
}

/** Of a task that may hold something by now. What others do in the meantime stays open. */
export async function planAsOf(
  facts: DecisionFacts,
  revision: PolicyRevision,
  task: Task,
  above: readonly Task[],
  now: Instant,
): Promise<PlannedAccess[]> {
  const known = new Map<ToolAccess, Facts>();
  if (task.state === 'open') {
    for (const access of task.tools) {
      const needs = revision.needs(task.agent, access, false, now - task.openedAt);
      known.set(
        access,
        needs === undefined ? nothingYet : await facts.load(task, access, { ...needs, rates: [] }, now),
      );
    }
  }
  return planOf(revision, task, above, now, (access) => known.get(access));
}

export function tooLong(field: string, latest: Instant): BrokerError {
  return fieldInvalid(field, `is later than a task may last here; the latest is ${new Date(latest).toISOString()}`);
}
