import { actsAsAgent, canSee, leaseNotFound, taskNotFound } from '../access.ts';
import type { Caller } from '../caller.ts';
import { BrokerError, fieldInvalid } from '../errors.ts';
import type { NewId } from '../ids.ts';
import type { TaskCache } from '../issue.ts';
import type { Lease, Task, Tier } from '../model.ts';
import type { PolicySource } from '../policy.ts';
import type { Provider } from '../provider.ts';
import type { Page } from '../store.ts';
import type { Emit } from '../telemetry.ts';
import type { Clock, Instant, Millis } from '../time.ts';
import { argumentsOfCall, type SentArguments } from './call-arguments.ts';
import { endedEvent, raisedEvents, recordedEvents } from './events.ts';
import type { CallEnd, CallPeer, CallReporter, CallViolation, ToolCall } from './model.ts';
import type { CallFilter, CallStore } from './store.ts';
import { targetOf } from './target.ts';
import { violationsOf } from './violations.ts';

export interface CallRequest {
  requestId: string;
  /** Of the request's content, its end included: tells a retry from a mistake. */
  requestDigest: string;
  taskId: string;
  leaseId: string | undefined;
  tool: string | undefined;
  tier: Tier | undefined;
  action: string;
  arguments: SentArguments;
  aboutCallId: string | undefined;
  peer: CallPeer | undefined;
}

/** What is known of a call that is over. */
export interface CallOver {
  end: CallEnd;
  startedAt: Instant | undefined;
  endedAt: Instant | undefined;
}

export interface CallEndRequest {
  requestId: string;
  requestDigest: string;
  callId: string;
  end: CallEnd;
}

/** A call that does not fit what was granted, once its record is committed. */
export interface RaisedCall {
  call: ToolCall;
  /** Those that are new. */
  violations: readonly CallViolation[];
}

export interface ToolCallsOptions {
  clock: Clock;
  newId: NewId;
  policy: PolicySource;
  cache: TaskCache;
  store: CallStore;
  providers: ReadonlyMap<string, Provider>;
  /** `sha256` in lower-case hex. */
  sha256: (text: string) => string;
  emit: Emit;
  /** For detectors: told of every record after its commit, and has to be quick. */
  onRecorded?: (call: ToolCall) => void;
  /** For detectors: told after the commit, and has to be quick. */
  onViolation?: (raised: RaisedCall) => void;
}

export type ToolCalls = ReturnType<typeof createToolCalls>;

/** Between the clocks of a reporter and of the broker. */
const skew: Millis = 60_000;
const oldest: Millis = 86_400_000;
/** Tasks that are remembered to have no room for more. */
const maxFull = 10_000;

export function createToolCalls(options: ToolCallsOptions) {
  const { clock, policy, cache, store, emit } = options;
  const full = new Set<string>();

  return {
    begin: (caller: Caller, request: CallRequest): Promise<ToolCall> => record(caller, request, undefined),
    record: (caller: Caller, request: CallRequest, over: CallOver): Promise<ToolCall> => record(caller, request, over),
    end,

    get: async (caller: Caller, callId: string): Promise<ToolCall> => {
      const call = await store.get(caller.tenant, callId);
      if (call === undefined || !(call.reportedBy === caller.workload || (await seesTask(caller, call.taskId)))) {
        throw callNotFound(callId);
      }
      return call;
    },

    list: async (caller: Caller, filter: Omit<CallFilter, 'tenant'>): Promise<Page<ToolCall>> => {
      const everywhere = caller.roles.has('operator') || caller.roles.has('auditor');
      if (filter.taskId === undefined && !everywhere) {
        throw fieldInvalid('task_id', 'is required: only operators and auditors look across tasks');
      }
      if (filter.taskId !== undefined && !(await seesTask(caller, filter.taskId))) throw taskNotFound(filter.taskId);
      return await store.list({ ...filter, tenant: caller.tenant });
    },
  };

  async function record(caller: Caller, request: CallRequest, over: CallOver | undefined): Promise<ToolCall> {
    const now = clock.now();
    const task = await taskOf(caller, request.taskId);
    const reporter = reporterOf(caller, task);
    const { tenant, taskId } = task;
    const retry = () => store.byRequest(tenant, taskId, caller.workload, request.requestId);
    if (full.has(`${tenant} ${taskId}`)) return sameAs(await retry(), request) ?? refuseMore(taskId);

    const call = await build(caller, reporter, task, request, over, now);
    const { written, ...after } = await store.insert({ call, events: recordedEvents(call) });
    if (after.full) remember(`${tenant} ${taskId}`);
    if (!written) {
      const earlier = sameAs(await retry(), request);
      if (earlier === undefined) throw new Error(`${call.callId} was neither written nor found`);
      return earlier;
    }
    tell(call);
    return { ...call, unfinishedAt: after.unfinishedAt };
  }

  /** A cached task that says who its agent is and that it is open can be relied on: a lease that ended says so itself. */
  async function taskOf(caller: Caller, taskId: string): Promise<Task> {
    const cached = await cache.get(caller.tenant, taskId);
    const task = cached?.agentWorkload === undefined ? await cache.refresh(caller.tenant, taskId) : cached;
    if (task === undefined) throw taskNotFound(taskId);
    return task;
  }

  /** Nobody else learns whether the task exists. */
  function reporterOf(caller: Caller, task: Task): CallReporter {
    if (caller.roles.has('agent') && actsAsAgent(caller, task)) return 'agent';
    const { tenant, workload, roles } = caller;
    if (tenant === task.tenant && roles.has('resource_server') && policy.current(tenant).toolsOf(workload).size > 0) {
      return 'tool';
    }
    throw taskNotFound(task.taskId);
  }

  async function build(
    caller: Caller,
    reporter: CallReporter,
    cached: Task,
    request: CallRequest,
    over: CallOver | undefined,
    now: Instant,
  ): Promise<ToolCall> {
    const lease = await leaseOf(cached, request.leaseId);
    if (reporter === 'tool' && lease === undefined) throw leaseNotFound(request.leaseId ?? '');
    // Whatever is not plainly in order is judged by what the database says now.
    const inOrder =
      cached.state === 'open' &&
      lease?.state === 'active' &&
      (reporter === 'tool' || lease.workload === caller.workload);
    const task = inOrder ? cached : ((await cache.refresh(cached.tenant, cached.taskId)) ?? cached);
    // It may have been handed over to another agent since.
    if (!inOrder && reporter === 'agent' && !actsAsAgent(caller, task)) throw taskNotFound(task.taskId);
    const { tool, tier } = accessOf(caller, reporter, request, lease);
    const about = await aboutOf(reporter, task, request.aboutCallId);
    if (request.peer !== undefined && reporter !== 'tool') throw fieldInvalid('peer', 'is for tools to report');

    const registered = policy.current(task.tenant).tools.get(tool);
    const args = argumentsOfCall(request.arguments, registered?.tiers[tier]?.arguments ?? {}, options.sha256);
    const times = timesOf(over, now);
    // Of a tool's caller the broker knows who holds the lease; the tool may have seen who presented it.
    const presentedBy = reporter === 'agent' ? caller.workload : request.peer?.workload || undefined;
    const violations = violationsOf({
      reporter,
      task,
      leaseId: request.leaseId,
      lease,
      tool,
      tier,
      registered: registered?.tiers[tier],
      action: request.action,
      arguments: args.scalars,
      argumentsDigest: args.digest,
      usedBy: presentedBy,
      startedAt: times.startedAt,
      receivedAt: now,
      about,
    });
    return {
      tenant: task.tenant,
      callId: options.newId('cal'),
      taskId: task.taskId,
      rootTaskId: task.rootTaskId,
      requestId: request.requestId,
      requestDigest: request.requestDigest,
      agent: lease?.agent ?? task.agent,
      workload: reporter === 'agent' ? caller.workload : lease!.workload,
      chain: task.parentTaskId === undefined ? [] : await store.chain(task),
      intent: task.intent,
      reporter,
      reportedBy: caller.workload,
      tool,
      tier,
      leaseId: request.leaseId,
      action: request.action,
      argumentsDigest: args.digest,
      arguments: args.declared,
      target: targetOf(lease, tool, registered, options.providers),
      aboutCallId: request.aboutCallId,
      peer: request.peer,
      timesStated: over !== undefined && (over.startedAt !== undefined || over.endedAt !== undefined),
      ...times,
      recordedAt: now,
      end: over?.end,
      endRequestId: undefined,
      endDigest: undefined,
      unfinishedAt: undefined,
      violations,
    };
  }

  /** A lease of another task, and one whose credential nobody received, are as unknown as one that never was. */
  async function leaseOf(task: Task, leaseId: string | undefined): Promise<Lease | undefined> {
    if (leaseId === undefined) return undefined;
    const lease = await store.lease(task.tenant, leaseId);
    if (lease === undefined || lease.taskId !== task.taskId) return undefined;
    return lease.state === 'pending' || lease.settleCause === 'abandoned' ? undefined : lease;
  }

  /** What was called. A tool speaks of itself alone. */
  function accessOf(
    caller: Caller,
    reporter: CallReporter,
    request: CallRequest,
    lease: Lease | undefined,
  ): { tool: string; tier: Tier } {
    const own = reporter === 'tool' ? policy.current(caller.tenant).toolsOf(caller.workload) : undefined;
    const only = own?.size === 1 ? [...own][0] : undefined;
    const named = request.tool ?? (own === undefined || own.has(lease!.tool) ? lease?.tool : only);
    if (named === undefined || (request.tier ?? lease?.tier) === undefined) {
      // The same words whether the lease is somebody else's or nobody's.
      if (request.leaseId !== undefined && own === undefined) throw leaseNotFound(request.leaseId);
      throw fieldInvalid(named === undefined ? 'tool' : 'tier', 'is required where no lease says it');
    }
    if (own !== undefined && !own.has(named)) {
      throw new BrokerError(
        'ROLE_REQUIRED',
        `this workload is not one of tool ${named}: a tool reports calls of its own, as its Tool document's workloads say`,
      );
    }
    return { tool: named, tier: request.tier ?? lease!.tier };
  }

  async function aboutOf(reporter: CallReporter, task: Task, callId: string | undefined) {
    if (callId === undefined) return undefined;
    if (reporter !== 'tool') throw fieldInvalid('about_call_id', 'is for tools to say');
    const about = await store.get(task.tenant, callId);
    if (about?.taskId !== task.taskId || about.reporter !== 'agent') {
      throw fieldInvalid(
        'about_call_id',
        "is no record of this task's agent: leave it out when the agent passed none on",
      );
    }
    return about;
  }

  async function end(caller: Caller, request: CallEndRequest): Promise<ToolCall> {
    const { callId } = request;
    const call = await store.get(caller.tenant, callId);
    if (call === undefined || call.reportedBy !== caller.workload || !(await stillReports(caller, call))) {
      throw callNotFound(callId);
    }
    if (call.endedAt === undefined) {
      const now = clock.now();
      const endedAt = Math.max(now, call.startedAt);
      const ended = await store.end({
        call,
        end: request.end,
        endedAt,
        requestId: request.requestId,
        digest: request.requestDigest,
        events: [endedEvent(call, request.end, endedAt)],
        lateEvents: raisedEvents(call, ['ended_late'], endedAt),
      });
      if (ended !== undefined) {
        raise(ended, ended.violations.includes('ended_late') ? ['ended_late'] : []);
        return ended;
      }
    }
    const present = (await store.get(caller.tenant, callId)) ?? call;
    if (present.endRequestId === request.requestId && present.endDigest === request.requestDigest) return present;
    throw new BrokerError('CALL_ENDED', `call ${callId} was ended before: what was recorded of it stays`);
  }

  /** The workload may have lost its part since it began the call. */
  async function stillReports(caller: Caller, call: ToolCall): Promise<boolean> {
    if (call.reporter === 'tool') return policy.current(caller.tenant).toolsOf(caller.workload).has(call.tool);
    const task = await cache.get(caller.tenant, call.taskId);
    return task !== undefined && actsAsAgent(caller, task);
  }

  async function seesTask(caller: Caller, taskId: string): Promise<boolean> {
    const task = await cache.get(caller.tenant, taskId);
    return task !== undefined && canSee(caller, task);
  }

  function tell(call: ToolCall): void {
    emit('call.recorded', { ...callFields(call), reporter: call.reporter, isOver: call.end !== undefined });
    raise(call, call.violations);
    options.onRecorded?.(call);
  }

  function raise(call: ToolCall, violations: readonly CallViolation[]): void {
    for (const violation of violations) emit('call.raised', { ...callFields(call), agent: call.agent, violation });
    if (violations.length > 0) options.onViolation?.({ call, violations });
  }

  /** A name that nobody registered is the caller's text, and becomes no label. */
  function callFields({ tenant, taskId, callId, tool, tier }: ToolCall) {
    return { tenant, taskId, callId, tool: policy.current(tenant).tools.has(tool) ? tool : '(unregistered)', tier };
  }

  function remember(key: string): void {
    if (full.size >= maxFull) full.clear();
    full.add(key);
  }
}

function timesOf(over: CallOver | undefined, now: Instant) {
  if (over === undefined) return { startedAt: now, endedAt: undefined };
  const { startedAt = over.endedAt ?? now, endedAt = now } = over;
  for (const [field, at] of Object.entries({ start_time: over.startedAt, end_time: over.endedAt })) {
    if (at === undefined) continue;
    if (at > now + skew) throw fieldInvalid(field, 'lies in the future');
    if (at < now - oldest) throw fieldInvalid(field, 'lies more than a day back');
  }
  if (over.endedAt !== undefined && startedAt > over.endedAt) throw fieldInvalid('start_time', 'lies after end_time');
  return { startedAt: Math.min(startedAt, now), endedAt: Math.min(endedAt, now) };
}

function sameAs(earlier: ToolCall | undefined, request: CallRequest): ToolCall | undefined {
  if (earlier !== undefined && earlier.requestDigest !== request.requestDigest) {
    throw new BrokerError('REQUEST_ID_REUSED', 'this request_id recorded another call: send a new one');
  }
  return earlier;
}

function refuseMore(taskId: string): never {
  throw new BrokerError(
    'CALL_LIMIT',
    `task ${taskId} has as many recorded calls as a task may have: an operator can raise calls.maxPerTask`,
  );
}

function callNotFound(callId: string): BrokerError {
  return new BrokerError('CALL_NOT_FOUND', `no call ${callId} of this caller: check the id and who recorded it`);
}
