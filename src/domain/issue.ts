import { checkArguments, noArguments, type DeclaredArguments } from './arguments.ts';
import { actsAsAgent, holds, leaseNotFound, taskClosed, taskNotFound } from './access.ts';
import { approvalEvent } from './approvals/build.ts';
import type { ApprovalGate } from './approvals/gate.ts';
import { auditEvent, type AuditEvent } from './audit.ts';
import type { Caller } from './caller.ts';
import { decide, type BoundedDecision, type DecisionContext } from './decision.ts';
import { asked } from './decision-record.ts';
import { allNeeds, loadFacts, needsOf, tasksAbove, type ChainNeeds } from './delegation/chain.ts';
import { BrokerError, fieldInvalid } from './errors.ts';
import { counts, type DecisionFacts, type Uncounted } from './facts.ts';
import type { NewId } from './ids.ts';
import { createHandOut, pendingMargin, type Issued, type PreparedGrant } from './hand-out.ts';
import { createInTurn } from './in-turn.ts';
import {
  decisionDetail,
  groundOf,
  refusalEvents,
  type Allowed,
  type Line,
  type Recorded,
  type Refused,
} from './issue-records.ts';
import { leaseEnded, notRenewed, otherKey, refusal, renewable, stillRunning } from './issue-refusals.ts';
import { bindingField, constraintOf, sameBinding } from './key-binding.ts';
import { lockedError, lockedReason, type LockGuard } from './locks/guard.ts';
import type { Lock } from './locks/model.ts';
import { argumentsOf, renewAfter, renewalContext, termsOf, turnsOf } from './lease-terms.ts';
import type { KeyBinding, Lease, Task, ToolAccess } from './model.ts';
import type { PolicyRevision, PolicySource, RenewalContext } from './policy.ts';
import type { Grant, Material, Provider, TargetProvider } from './provider.ts';
import type { LeaseStore, LeaseWrite, LeaseWriter, TaskStore } from './store.ts';
import type { Emit, Reached } from './telemetry.ts';
import type { Clock, Instant, Millis } from './time.ts';
import { within } from './within.ts';

export interface IssueRequest {
  requestId: string;
  taskId: string;
  access: ToolAccess;
  justification: string;
  /** Absent: none. */
  arguments?: DeclaredArguments;
  /** Name of the approval to use; undefined: one that fits is found. */
  approval?: string | undefined;
  /** The key or certificate that the caller has proved to hold, for the credential to be bound to. */
  binding?: KeyBinding | undefined;
}

/** Tasks as this replica last saw them. A stale one costs a refused write and a second look, never a wrong issue. */
export interface TaskCache {
  get(tenant: string, taskId: string): Task | undefined | Promise<Task | undefined>;
  refresh(tenant: string, taskId: string): Promise<Task | undefined>;
}

export interface IssuerOptions {
  clock: Clock;
  newId: NewId;
  policy: PolicySource;
  providers: ReadonlyMap<string, Provider>;
  cache: TaskCache;
  approvals: ApprovalGate;
  locks: LockGuard;
  tasks: Pick<TaskStore, 'pinAgent'>;
  leases: Pick<LeaseStore, 'get' | 'byRequest' | 'abandon' | 'reopen' | 'beginReissue' | 'endReissue'>;
  writer: LeaseWriter;
  /** Resolves when what was begun in this turn of the event loop has been sent. */
  sent: () => Promise<void>;
  facts: DecisionFacts;
  /** How long a renewed lease lives on beside its successor. */
  renewalOverlap: Millis;
  /** Throws when this replica must not issue (clock skew, stopping). */
  admit: () => void;
  reached: Reached;
  emit: Emit;
}

export interface Issuer {
  issue(caller: Caller, request: IssueRequest): Promise<Issued>;
  /** What the caller has proved to hold, asked for what the lease is bound to; `unasked` for a stream, whose first call proved it. */
  renew(
    caller: Caller,
    leaseId: string,
    requestId: string,
    proved: ((boundTo: KeyBinding | undefined) => KeyBinding | undefined) | 'unasked',
  ): Promise<Issued>;
}

/** A task in its tree. */
interface Place {
  task: Task;
  /** Nearest first; undefined for a root. */
  above: readonly Task[] | undefined;
}

const nothingCounted = { facts: undefined, above: undefined } as const;
/** For a credential that needs no target, but is decided on what storage counts. */
const signingTimeout: Millis = 5_000;
/** The task or the locks changed while we decided: decide again, but not for ever. */
const maxRounds = 8;

export function createIssuer(options: IssuerOptions): Issuer {
  const { clock, cache, leases, writer, policy } = options;
  const inTurn = createInTurn();
  const { issueSelfContained, issueInTwoSteps, issueAnew } = createHandOut({
    ...options,
    refreshTask: (tenant, taskId) => cache.refresh(tenant, taskId),
    locksNow: (task, lease) => options.locks.fresh(task, lease.workload, lease),
  });

  return {
    issue: async (caller, request) => {
      options.admit();
      const task = await ownTask(caller, request.taskId);
      return await grant(caller, task, request.access, {
        renewedFrom: undefined,
        requestId: request.requestId,
        justification: request.justification,
        arguments: request.arguments ?? noArguments,
        approval: request.approval,
        binding: request.binding,
      });
    },

    renew: async (caller, leaseId, requestId, proved) => {
      options.admit();
      const lease = await leases.get(caller.tenant, leaseId);
      if (lease === undefined || !holds(caller, lease)) throw leaseNotFound(leaseId);
      let task = await ownTask(caller, lease.taskId);
      // A heartbeat wakes nobody, so the cached task may not have heard the last one.
      if ((task.heartbeatDue ?? Infinity) <= clock.now()) {
        task = (await cache.refresh(caller.tenant, task.taskId)) ?? task;
      }
      const binding = lease.terms?.boundTo;
      if (proved !== 'unasked' && !sameBinding(proved(binding), binding)) throw otherKey(lease);
      const line = { renewedFrom: lease, requestId, justification: '', arguments: argumentsOf(lease), binding };
      if (!renewable(lease, clock.now())) {
        // The answer to this very renewal may have been lost: then its lease exists.
        const replayed = await replay(caller, task, lease, line);
        if (replayed !== undefined) return replayed;
        throw task.state === 'open' ? leaseEnded(lease) : taskClosed(task);
      }
      return await grant(caller, task, lease, line);
    },
  };

  async function ownTask(caller: Caller, taskId: string): Promise<Task> {
    const cached = cache.get(caller.tenant, taskId);
    let task = cached instanceof Promise ? await cached : cached;
    // It may have been handed over to this caller since this replica last saw it.
    if (cached === task && task !== undefined && !actsAsAgent(caller, task)) {
      task = await cache.refresh(caller.tenant, taskId);
    }
    if (task === undefined || !actsAsAgent(caller, task)) throw taskNotFound(taskId);
    if (task.agentWorkload === undefined && task.state === 'open') {
      const event = auditEvent(task, 'task.agent_pinned', caller.workload, clock.now(), { workload: caller.workload });
      await options.tasks.pinAgent(task, caller.workload, event);
      task = await cache.refresh(caller.tenant, taskId);
      if (task === undefined || !actsAsAgent(caller, task)) throw taskNotFound(taskId);
    }
    return task;
  }

  async function grant(caller: Caller, first: Task, access: ToolAccess, line: Line): Promise<Issued> {
    let task = first;
    for (let round = 0; round < maxRounds; round++) {
      const now = clock.now();
      if (task.state !== 'open' || task.deadline <= now) {
        await refuse(caller, task, access, now, { effect: 'deny', rule: '', reason: 'the task has ended' }, line);
        throw taskClosed(task);
      }
      // Before everything that policy, people or a target could still say.
      const looked = options.locks.standing(task, caller.workload, access);
      const { epoch: lockEpoch, lock } = looked instanceof Promise ? await looked : looked;
      if (lock !== undefined) throw await refuseLocked(caller, task, access, line, lock, now);
      const revision = policy.current(task.tenant);
      await checkDeclared(caller, task, access, now, line, revision);
      const above = task.parentTaskId === undefined ? undefined : await openAbove(task, now);
      const needs = needsOf(revision, task, above, access, line.renewedFrom !== undefined, now);
      const place = { task, above };
      const issued =
        needs === undefined
          ? await attempt(caller, place, access, line, revision, now, lockEpoch, undefined)
          : await inTurn(turnsOf(needs, place, access), () =>
              attempt(caller, place, access, line, revision, now, lockEpoch, needs),
            );
      if (issued !== undefined) return issued;

      const replayed = await replay(caller, task, access, line);
      if (replayed !== undefined) return replayed;
      const fresh = await cache.refresh(task.tenant, task.taskId);
      // It may have been handed over to somebody else meanwhile.
      if (fresh === undefined || !actsAsAgent(caller, fresh)) throw taskNotFound(task.taskId);
      task = fresh;
      await options.locks.fresh(task, caller.workload, access);
      if (line.renewedFrom !== undefined && task.state === 'open') {
        const current = await leases.get(task.tenant, line.renewedFrom.leaseId);
        if (current === undefined || !renewable(current, now)) throw leaseEnded(line.renewedFrom);
      }
    }
    throw new BrokerError(
      'CLOCK_SKEW',
      'the task or the locks changed each time that the broker was about to issue, or the clocks of broker and database disagree: retry with the same request_id',
    );
  }

  /** From the cache: whatever ends a task ends those below it, whose own rows the write asks. */
  async function openAbove(task: Task, now: Instant): Promise<readonly Task[]> {
    const above = await tasksAbove(cache.get, task);
    for (const [index, one] of above.entries()) {
      if (one.state !== 'open') throw taskClosed(one);
      // A heartbeat wakes nobody.
      if ((one.heartbeatDue ?? Infinity) <= now) above[index] = (await cache.refresh(one.tenant, one.taskId)) ?? one;
    }
    return above;
  }

  /** Undefined: the write was refused. */
  async function attempt(
    caller: Caller,
    { task, above }: Place,
    access: ToolAccess,
    line: Line,
    revision: PolicyRevision,
    now: Instant,
    lockEpoch: number,
    needs: ChainNeeds | undefined,
  ): Promise<Issued | undefined> {
    const { renewedFrom } = line;
    // A line that goes on is no further credential.
    const ownLine =
      renewedFrom === undefined ? undefined : { lineStartedAt: renewedFrom.lineStartedAt, taskId: task.taskId };
    let sinceApproval: RenewalContext['sinceApproval'];
    const decideNow = async (except: Uncounted | undefined = ownLine) => {
      const context: DecisionContext = {
        workload: caller.workload,
        now,
        renewal: renewedFrom === undefined ? undefined : { ...renewalContext(renewedFrom, task, now), sinceApproval },
        arguments: line.arguments.values,
        boundTo: constraintOf(line.binding),
        ...(needs === undefined && above === undefined
          ? nothingCounted
          : await loadFacts(options.facts, task, above, access, needs, now, except)),
      };
      const record: Recorded = { decisionId: options.newId('dec'), asked: asked(task, context) };
      return { ...decide(revision, task, access, context), record };
    };
    let decided = await decideNow();
    if (decided.effect === 'needs_approval' && renewedFrom !== undefined) {
      // People that were asked in the middle of a line are asked again from there on. Nobody else pays for the look.
      sinceApproval = await options.approvals.since(renewedFrom, now);
      if (sinceApproval !== undefined) decided = await decideNow();
    }
    const all = allNeeds(needs);
    const counted = counts(all);
    if (counted && decided.effect === 'deny') {
      // A retry is no further use: what it counts may be its own first call.
      const replayed = await replay(caller, task, access, line);
      if (replayed !== undefined) return replayed;
    }
    let decision: Allowed;
    if (decided.effect === 'allow') decision = decided;
    else {
      const passage = await onApproval(caller, task, access, now, decided, line, revision);
      if ('lease' in passage) return passage;
      decision = passage;
    }
    const provider = options.providers.get(decision.tier.provider);
    if (provider === undefined) {
      throw new BrokerError('PROVIDER_UNAVAILABLE', `this broker has no provider ${decision.tier.provider}`);
    }
    const grant = newGrant(
      caller,
      { task, above },
      access,
      decision,
      revision,
      line,
      now,
      provider,
      counted,
      lockEpoch,
    );
    if (provider.selfContained && !counted) return await issueSelfContained(provider, grant);
    return await issueInTwoSteps(provider, grant, async (made) => {
      // Two people have set policy aside: its counts as well. A signal may have come while the target made the credential.
      if (decision.on?.kind === 'break_glass' || !(made ? all?.signals === true : counted)) return;
      // Another replica may have counted at the same moment. Each looks again after its own lease is committed, so the
      // later of two sees the earlier.
      const again = await decideNow({ ...ownLine, leaseId: grant.lease.leaseId });
      if (again.effect !== 'deny') return;
      await refuse(caller, task, access, now, again, line, revision);
      throw refusal(again, access, line);
    });
  }

  /** What the request says about this use has to be what the tier takes. */
  async function checkDeclared(
    caller: Caller,
    task: Task,
    access: ToolAccess,
    now: Instant,
    line: Line,
    revision: PolicyRevision,
  ): Promise<void> {
    const tier = revision.tools.get(access.tool)?.tiers[access.tier];
    if (tier === undefined) return;
    if (line.binding !== undefined && options.providers.get(tier.provider)?.selfContained !== true) {
      const name = `${access.tool}:${access.tier}`;
      throw fieldInvalid(
        bindingField(line.binding),
        `a credential of ${name} comes from ${tier.provider} and cannot be bound to a key or certificate`,
      );
    }
    try {
      checkArguments(`${access.tool}:${access.tier}`, tier.arguments ?? {}, line.arguments.values);
    } catch (error) {
      if (line.renewedFrom === undefined || !(error instanceof BrokerError)) throw error;
      // The tool was changed since: what was declared then is no mistake of this call.
      const denied = { effect: 'deny', rule: '', reason: `the tool has changed: ${error.message}` } as const;
      await refuse(caller, task, access, now, denied, line, revision);
      throw refusal(denied, access, line);
    }
  }

  /**
   * A decision that is no allow: a credential that this very request has had already, an allow on an approval, or the
   * refusal, thrown. What was issued on an approval is not asked for again by a retry.
   */
  async function onApproval(
    caller: Caller,
    task: Task,
    access: ToolAccess,
    now: Instant,
    decision: Exclude<BoundedDecision, { effect: 'allow' }> & { record: Recorded },
    line: Line,
    revision: PolicyRevision,
  ): Promise<Issued | Allowed> {
    if (decision.effect === 'needs_approval') {
      const replayed = await replay(caller, task, access, line);
      if (replayed !== undefined) return replayed;
    }
    const passage = await options.approvals.pass({
      caller,
      task,
      access,
      arguments: line.arguments,
      named: line.approval,
      justification: line.justification,
      decision,
      revision,
      now,
      refused: refusalEvents(caller, task, access, now, decision, line, revision),
    });
    if (passage === undefined) {
      await refuse(caller, task, access, now, decision, line, revision);
      throw refusal(decision, access, line);
    }
    const { approval } = passage;
    if ('granted' in passage) {
      const { rule, record, hop } = decision;
      const which = hop === undefined ? {} : { hop };
      const reason = groundOf(approval);
      return { effect: 'allow', rule, reason, ...which, ...passage.granted, on: approval, record };
    }
    const { error } = passage;
    if (passage.recorded) emitDenied(task, access, decision);
    else await refuse(caller, task, access, now, { ...decision, reason: error.message }, line, revision);
    throw line.renewedFrom === undefined ? error : notRenewed(error, access, line.renewedFrom);
  }

  function newGrant(
    caller: Caller,
    { task, above }: Place,
    access: ToolAccess,
    decision: Allowed,
    revision: PolicyRevision,
    line: Line,
    now: Instant,
    provider: Provider,
    counted: boolean,
    lockEpoch: number,
  ): PreparedGrant {
    const leaseId = options.newId('lse');
    const inTwoSteps = !provider.selfContained || counted;
    const timeout = provider.selfContained ? signingTimeout : provider.issueTimeout;
    const ceiling = provider.selfContained ? provider.maxExpiry(task.tenant, now) : Infinity;
    const lease: Lease = {
      tenant: task.tenant,
      leaseId,
      taskId: task.taskId,
      requestId: line.requestId,
      agent: task.agent,
      workload: caller.workload,
      tool: access.tool,
      tier: access.tier,
      provider: provider.kind,
      handle: provider.selfContained ? '' : provider.handle(leaseId, decision.tier),
      state: inTwoSteps ? 'pending' : 'active',
      outcome: undefined,
      revocationKind: decision.tier.revocation,
      issuedAt: now,
      expiresAt: Math.min(now + decision.life, ceiling),
      settledAt: undefined,
      deadBy: undefined,
      renewedFrom: line.renewedFrom?.leaseId,
      renewalCount: line.renewedFrom === undefined ? 0 : line.renewedFrom.renewalCount + 1,
      lineStartedAt: line.renewedFrom?.lineStartedAt ?? now,
      policyRevision: revision.digest,
      policyRule: decision.rule,
      terms: termsOf(line.arguments, decision.obligations, now, line.binding),
      settleCause: undefined,
      settleAttempts: 0,
      settleError: undefined,
    };
    const write: LeaseWrite = {
      lease,
      epoch: task.epoch,
      lockEpoch,
      settleAt: inTwoSteps ? now + timeout + pendingMargin : lease.expiresAt,
      supersedeAt: line.renewedFrom === undefined ? undefined : now + options.renewalOverlap,
      events: [
        auditEvent(
          task,
          'decision.made',
          caller.workload,
          now,
          decisionDetail(access, decision, revision, line),
          leaseId,
        ),
      ],
    };
    const { on: approval } = decision;
    if (approval !== undefined) {
      write.approval = { approvalId: approval.approvalId, argumentsDigest: line.arguments.digest };
      const used = approvalEvent(approval, 'approval.used', caller.workload, now);
      write.events.push({ ...used, taskId: task.taskId, leaseId });
    }
    return { lease, task, above, tool: decision.tool, tier: decision.tier, write };
  }

  /** The same request_id again: an equivalent credential for the same lease (invariant 4). */
  async function replay(caller: Caller, task: Task, access: ToolAccess, line: Line): Promise<Issued | undefined> {
    const lease = await leases.byRequest(task.tenant, task.taskId, line.requestId);
    if (lease === undefined) return undefined;
    if (
      lease.workload !== caller.workload ||
      lease.tool !== access.tool ||
      lease.tier !== access.tier ||
      lease.renewedFrom !== line.renewedFrom?.leaseId ||
      argumentsOf(lease).digest !== line.arguments.digest ||
      !sameBinding(lease.terms?.boundTo, line.binding)
    ) {
      throw new BrokerError('REQUEST_ID_REUSED', 'this request_id was used for another credential: send a new one');
    }
    const now = clock.now();
    if (lease.state === 'pending') throw stillRunning();
    if (lease.state !== 'active' || lease.expiresAt <= now) throw leaseEnded(lease);
    const tool = policy.current(task.tenant).tools.get(lease.tool);
    const tier = tool?.tiers[lease.tier];
    const provider = options.providers.get(lease.provider);
    if (tool === undefined || tier === undefined || provider === undefined) throw leaseEnded(lease);
    const detail = { request_id: line.requestId };
    const event = auditEvent(task, 'lease.reissued', caller.workload, now, detail, lease.leaseId);
    if (!provider.selfContained && provider.reissue === 'anew') {
      const { task: current, lockEpoch } = await stillOpen(caller, task, access, line, now);
      const settleAt = now + provider.issueTimeout + pendingMargin;
      const { epoch } = current;
      const write: LeaseWrite = { lease, epoch, lockEpoch, settleAt, supersedeAt: undefined, events: [] };
      const above = current.parentTaskId === undefined ? undefined : await openAbove(current, now);
      const anew = await issueAnew(provider, { lease, task: current, above, tool, tier, write }, event);
      // Another retry of the same call, a lock, or the end of the lease was there first.
      if (anew === undefined) throw stillRunning();
      return anew;
    }
    const pass = async (events: AuditEvent[]): Promise<Grant> => {
      const current = await reissued(caller, task, access, line, lease, events, now);
      const above = current.parentTaskId === undefined ? undefined : await openAbove(current, now);
      return { lease, task: current, above, tool, tier };
    };
    const material = provider.selfContained
      ? provider.sign(await pass([event]))
      : await replaceSecret(provider, lease, event, pass);
    return { lease, material, renewAfter: renewAfter(lease) };
  }

  /** Of two retries at once, one would hold a secret that the other has replaced. */
  async function replaceSecret(
    provider: TargetProvider,
    lease: Lease,
    event: AuditEvent,
    pass: (events: AuditEvent[]) => Promise<Grant>,
  ): Promise<Material> {
    const now = clock.now();
    if (!(await leases.beginReissue(lease, now, now + provider.issueTimeout + pendingMargin))) {
      const current = await leases.get(lease.tenant, lease.leaseId);
      throw current?.state === 'active' ? stillRunning() : leaseEnded(lease);
    }
    try {
      const grant = await pass([event]);
      const { material } = await within(provider.issueTimeout, (signal) => provider.issue(grant, signal));
      // The task may have been closed, or locked, while the target was at it: then nobody gets it.
      await pass([]);
      return material;
    } finally {
      // When this fails, the hold runs out.
      await leases.endReissue(lease).catch(() => undefined);
    }
  }

  /** Handing out once more passes the same gate as the first time. Answers the task as it is then. */
  async function reissued(
    caller: Caller,
    task: Task,
    access: ToolAccess,
    line: Line,
    lease: Lease,
    events: AuditEvent[],
    now: Instant,
  ): Promise<Task> {
    for (let round = 0; round < maxRounds; round++) {
      const { task: current, lockEpoch } = await stillOpen(caller, task, access, line, now);
      if (await writer.reissue({ lease, epoch: current.epoch, lockEpoch, events })) return current;
    }
    throw leaseEnded(lease);
  }

  /** By what the database says now. */
  async function stillOpen(
    caller: Caller,
    task: Task,
    access: ToolAccess,
    line: Line,
    now: Instant,
  ): Promise<{ task: Task; lockEpoch: number }> {
    const current = await cache.refresh(task.tenant, task.taskId);
    if (current?.state !== 'open') throw taskClosed(current ?? task);
    const { epoch, lock } = await options.locks.fresh(current, caller.workload, access);
    if (lock !== undefined) throw await refuseLocked(caller, current, access, line, lock, now);
    return { task: current, lockEpoch: epoch };
  }

  /** Recorded; the error is for the caller to throw. */
  async function refuseLocked(
    caller: Caller,
    task: Task,
    access: ToolAccess,
    line: Line,
    lock: Lock,
    now: Instant,
  ): Promise<BrokerError> {
    const decisionId = options.newId('dec');
    const reason = `LOCKED: ${lockedReason(lock)}`;
    const revision = policy.current(task.tenant);
    const refused = { effect: 'deny', rule: '', reason, lock: lock.lockId, record: { decisionId } };
    await writer.record(refusalEvents(caller, task, access, now, refused, line, revision));
    emitDenied(task, access, { effect: 'locked', rule: '' });
    const metadata = { tool: access.tool, tier: access.tier, decision: decisionId };
    return lockedError(lock, metadata, line.renewedFrom?.expiresAt);
  }

  async function refuse(
    caller: Caller,
    task: Task,
    access: ToolAccess,
    now: Instant,
    decision: Refused,
    line: Line,
    revision = policy.current(task.tenant),
  ): Promise<void> {
    await writer.record(refusalEvents(caller, task, access, now, decision, line, revision));
    emitDenied(task, access, decision);
  }

  function emitDenied(task: Task, access: ToolAccess, decision: { effect: string; rule: string }): void {
    options.emit('lease.denied', {
      tenant: task.tenant,
      taskId: task.taskId,
      agent: task.agent,
      tool: access.tool,
      tier: access.tier,
      effect: decision.effect,
      policyRule: decision.rule,
    });
  }
}
