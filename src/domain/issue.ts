import { checkArguments, noArguments, type DeclaredArguments } from './arguments.ts';
import { actsAsAgent, holds, leaseNotFound, taskClosed, taskNotFound } from './access.ts';
import { approvalEvent } from './approvals/build.ts';
import type { ApprovalGate } from './approvals/gate.ts';
import type { Approval } from './approvals/model.ts';
import type { AuditEvent, AuditKind } from './audit.ts';
import type { Caller } from './caller.ts';
import { decide, type BoundedDecision, type DecisionContext } from './decision.ts';
import { asked, type Asked } from './decision-record.ts';
import { BrokerError } from './errors.ts';
import type { DecisionFacts, FactNeeds, Uncounted } from './facts.ts';
import type { NewId } from './ids.ts';
import { createInTurn } from './in-turn.ts';
import { argumentsOf, renewAfter, renewalContext, termsOf, turnsOf } from './lease-terms.ts';
import type { Lease, Task, ToolAccess } from './model.ts';
import type { PolicyRevision, PolicySource, RenewalContext } from './policy.ts';
import type { Grant, Material, Provider, SelfContainedProvider } from './provider.ts';
import type { LeaseStore, LeaseWrite, LeaseWriter, TaskStore } from './store.ts';
import { leaseFields, type Emit, type Reached } from './telemetry.ts';
import type { Clock, Instant, Millis } from './time.ts';

export interface IssueRequest {
  requestId: string;
  taskId: string;
  access: ToolAccess;
  justification: string;
  /** Absent: none. */
  arguments?: DeclaredArguments;
  /** Name of the approval to use; undefined: one that fits is found. */
  approval?: string | undefined;
}

export interface Issued {
  lease: Lease;
  material: Material;
  renewAfter: Instant;
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
  tasks: Pick<TaskStore, 'pinAgent'>;
  leases: Pick<LeaseStore, 'get' | 'byRequest' | 'abandon'>;
  writer: LeaseWriter;
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
  renew(caller: Caller, leaseId: string, requestId: string): Promise<Issued>;
}

/** Beyond the provider's own time-out: what the broker itself may take before the settler looks after a pending lease. */
const pendingMargin: Millis = 5_000;
/** For a credential that needs no target, but is decided on what storage counts. */
const signingTimeout: Millis = 5_000;
/** The task changed while we decided: decide again, but not for ever. */
const maxRounds = 4;

interface Line {
  renewedFrom: Lease | undefined;
  requestId: string;
  justification: string;
  arguments: DeclaredArguments;
  approval?: string | undefined;
}

export function createIssuer(options: IssuerOptions): Issuer {
  const { clock, cache, leases, writer, policy } = options;
  const inTurn = createInTurn();

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
      });
    },

    renew: async (caller, leaseId, requestId) => {
      options.admit();
      const lease = await leases.get(caller.tenant, leaseId);
      if (lease === undefined || !holds(caller, lease)) throw leaseNotFound(leaseId);
      let task = await ownTask(caller, lease.taskId);
      // A heartbeat wakes nobody, so the cached task may not have heard the last one.
      if ((task.heartbeatDue ?? Infinity) <= clock.now()) {
        task = (await cache.refresh(caller.tenant, task.taskId)) ?? task;
      }
      const line = { renewedFrom: lease, requestId, justification: '', arguments: argumentsOf(lease) };
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
      const revision = policy.current();
      await checkDeclared(caller, task, access, now, line, revision);
      const needs = revision.needs(task.agent, access, line.renewedFrom !== undefined);
      const current = task;
      const issued =
        needs === undefined
          ? await attempt(caller, current, access, line, revision, now, undefined)
          : await inTurn(turnsOf(needs, current, access), () =>
              attempt(caller, current, access, line, revision, now, needs),
            );
      if (issued !== undefined) return issued;

      const replayed = await replay(caller, task, access, line);
      if (replayed !== undefined) return replayed;
      const fresh = await cache.refresh(task.tenant, task.taskId);
      if (fresh === undefined) throw taskNotFound(task.taskId);
      task = fresh;
      if (line.renewedFrom !== undefined && task.state === 'open') {
        const current = await leases.get(task.tenant, line.renewedFrom.leaseId);
        if (current === undefined || !renewable(current, now)) throw leaseEnded(line.renewedFrom);
      }
    }
    throw new BrokerError(
      'CLOCK_SKEW',
      'the task changed each time that the broker was about to issue, or the clocks of broker and database disagree: retry with the same request_id',
    );
  }

  /** Undefined: the write was refused. */
  async function attempt(
    caller: Caller,
    task: Task,
    access: ToolAccess,
    line: Line,
    revision: PolicyRevision,
    now: Instant,
    needs: FactNeeds | undefined,
  ): Promise<Issued | undefined> {
    const { renewedFrom } = line;
    // A line that goes on is no further credential.
    const ownLine = renewedFrom === undefined ? undefined : { lineStartedAt: renewedFrom.lineStartedAt };
    let sinceApproval: RenewalContext['sinceApproval'];
    const decideNow = async (except: Uncounted | undefined = ownLine) => {
      const context: DecisionContext = {
        workload: caller.workload,
        now,
        renewal: renewedFrom === undefined ? undefined : { ...renewalContext(renewedFrom, task, now), sinceApproval },
        arguments: line.arguments.values,
        facts: needs === undefined ? undefined : await options.facts.load(task, access, needs, now, except),
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
    if (needs !== undefined && decided.effect === 'deny') {
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
    const counted = needs !== undefined;
    const grant = newGrant(caller, task, access, decision, revision, line, now, provider, counted);
    if (provider.selfContained && !counted) return await issueSelfContained(provider, grant);
    return await issueInTwoSteps(provider, grant, async () => {
      // Two people have set policy aside: its counts as well.
      if (!counted || decision.on?.kind === 'break_glass') return;
      // Another replica may have counted at the same moment. Each looks again after its own lease is committed, so the
      // later of two sees the earlier.
      const again = await decideNow(ownLine ?? { leaseId: grant.lease.leaseId });
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
      const { rule, record } = decision;
      const reason =
        approval.kind === 'break_glass' ? `break-glass ${approval.approvalId}` : `approval ${approval.approvalId}`;
      return { effect: 'allow', rule, reason, ...passage.granted, on: approval, record };
    }
    const { error } = passage;
    if (passage.recorded) emitDenied(task, access, decision);
    else await refuse(caller, task, access, now, { ...decision, reason: error.message }, line, revision);
    throw line.renewedFrom === undefined ? error : notRenewed(error, access, line.renewedFrom);
  }

  interface PreparedGrant extends Grant {
    write: LeaseWrite;
  }

  function newGrant(
    caller: Caller,
    task: Task,
    access: ToolAccess,
    decision: Allowed,
    revision: PolicyRevision,
    line: Line,
    now: Instant,
    provider: Provider,
    counted: boolean,
  ): PreparedGrant {
    const leaseId = options.newId('lse');
    const inTwoSteps = !provider.selfContained || counted;
    const timeout = provider.selfContained ? signingTimeout : provider.issueTimeout;
    const ceiling = provider.selfContained ? provider.maxExpiry(now) : Infinity;
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
      terms: termsOf(line.arguments, decision.obligations, now),
      settleCause: undefined,
      settleAttempts: 0,
      settleError: undefined,
    };
    const write: LeaseWrite = {
      lease,
      epoch: task.epoch,
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
      write.events.push({ ...approvalEvent(approval, 'approval.used', caller.workload, now), leaseId });
    }
    return { lease, task, tool: decision.tool, tier: decision.tier, write };
  }

  /** Undefined: the write was refused. */
  async function issueSelfContained(
    provider: SelfContainedProvider,
    grant: PreparedGrant,
  ): Promise<Issued | undefined> {
    grant.write.events.push(issuedEvent(grant));
    const written = writer.insert(grant.write);
    // Signing takes the CPU while the database takes the write; the token leaves only after the commit (design §5.5).
    let material: Material;
    try {
      material = provider.sign(grant);
    } catch (error) {
      await written.catch(() => undefined);
      throw error;
    }
    if (!(await written)) return undefined;
    return done(grant, material);
  }

  /** A pending lease first, then the credential, then `active`: what is in between is settled, whatever happens. */
  async function issueInTwoSteps(
    provider: Provider,
    grant: PreparedGrant,
    stillAllowed: () => Promise<void>,
  ): Promise<Issued | undefined> {
    const { lease, write } = grant;
    if (!(await writer.insert({ ...write, supersedeAt: undefined }))) return undefined;
    options.reached('issue.pending-committed');
    try {
      await stillAllowed();
    } catch (error) {
      await abandon(grant, 'policy does not allow it beside what was issued at the same moment');
      throw error;
    }
    let material: Material;
    try {
      material = provider.selfContained
        ? provider.sign(grant)
        : await provider.issue(grant, AbortSignal.timeout(provider.issueTimeout));
    } catch (error) {
      options.emit('provider.failed', { provider: lease.provider, tool: lease.tool, operation: 'issue', error });
      await abandon(grant, 'the provider did not make the credential');
      if (error instanceof BrokerError) throw error;
      throw new BrokerError(
        'PROVIDER_UNAVAILABLE',
        `the target of ${lease.tool}:${lease.tier} did not make a credential: retry with the same request_id`,
        { cause: error, retryAfterMs: 1_000 },
      );
    }
    options.reached('issue.credential-made');
    if (await activate(grant)) {
      options.reached('issue.activated');
      return done(grant, material);
    }
    await abandon(grant, 'the task changed before the credential was handed out');
    return undefined;
  }

  /** `pending` → `active`. A deadline that moved but still covers the lease is no reason to throw the credential away. */
  async function activate(grant: PreparedGrant): Promise<boolean> {
    const { lease, write } = grant;
    const events = [issuedEvent(grant)];
    let epoch = write.epoch;
    for (let round = 0; round < maxRounds; round++) {
      try {
        if (await writer.activate({ ...write, lease, epoch, settleAt: lease.expiresAt, events })) return true;
      } catch (error) {
        await abandon(grant, 'the broker could not record the credential');
        throw error;
      }
      const task = await cache.refresh(lease.tenant, lease.taskId);
      if (task?.state !== 'open' || task.epoch === epoch || task.deadline < lease.expiresAt) return false;
      epoch = task.epoch;
    }
    return false;
  }

  /** Nobody received it: settled at once, and by the settler in any case when this fails too (its `settleAt` stands). */
  async function abandon(grant: PreparedGrant, reason: string): Promise<void> {
    const { lease, task } = grant;
    const event = auditEvent(task, 'lease.abandoned', 'broker', clock.now(), { reason }, lease.leaseId);
    try {
      await leases.abandon(lease, clock.now(), event);
      options.emit('lease.abandoned', { ...leaseFields(lease), reason });
    } catch (error) {
      options.emit('storage.failed', { operation: 'abandon', error });
    }
  }

  function done(grant: PreparedGrant, material: Material): Issued {
    const lease: Lease = { ...grant.lease, state: 'active' };
    const fields = { ...leaseFields(lease), agent: lease.agent, expiresAt: lease.expiresAt };
    if (lease.renewedFrom === undefined) options.emit('lease.issued', fields);
    else options.emit('lease.renewed', { ...fields, renewedFrom: lease.renewedFrom });
    return { lease, material, renewAfter: renewAfter(lease) };
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
      argumentsOf(lease).digest !== line.arguments.digest
    ) {
      throw new BrokerError('REQUEST_ID_REUSED', 'this request_id was used for another credential: send a new one');
    }
    const now = clock.now();
    if (lease.state === 'pending') {
      throw new BrokerError('IN_PROGRESS', 'the first call with this request_id is still running: retry shortly', {
        retryAfterMs: 500,
      });
    }
    if (lease.state !== 'active' || lease.expiresAt <= now) throw leaseEnded(lease);
    const current = await cache.refresh(task.tenant, task.taskId);
    if (current?.state !== 'open') throw taskClosed(current ?? task);
    const tool = policy.current().tools.get(lease.tool);
    const tier = tool?.tiers[lease.tier];
    const provider = options.providers.get(lease.provider);
    if (tool === undefined || tier === undefined || provider === undefined) throw leaseEnded(lease);
    const grant: Grant = { lease, task: current, tool, tier };
    await writer.record([
      auditEvent(task, 'lease.reissued', caller.workload, now, { request_id: line.requestId }, lease.leaseId),
    ]);
    const material = provider.selfContained
      ? provider.sign(grant)
      : await provider.issue(grant, AbortSignal.timeout(provider.issueTimeout));
    return { lease, material, renewAfter: renewAfter(lease) };
  }

  async function refuse(
    caller: Caller,
    task: Task,
    access: ToolAccess,
    now: Instant,
    decision: { effect: string; rule: string; reason: string; record?: Recorded },
    line: Line,
    revision = policy.current(),
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

/** An allow, and the approval that it rests on where there is one. */
type Allowed = BoundedDecision & { effect: 'allow' } & { on?: Approval; record: Recorded };

/** By which a decision is found and made again. */
interface Recorded {
  decisionId: string;
  asked: Asked;
}

function refusalEvents(
  caller: Caller,
  task: Task,
  access: ToolAccess,
  now: Instant,
  decision: { effect: string; rule: string; reason: string; record?: Recorded },
  line: Line,
  revision: PolicyRevision,
): AuditEvent[] {
  const { tool, tier } = access;
  return [
    auditEvent(task, 'decision.made', caller.workload, now, decisionDetail(access, decision, revision, line)),
    auditEvent(task, 'lease.denied', caller.workload, now, { tool, tier, reason: decision.reason }),
  ];
}

function renewable(lease: Lease, now: Instant): boolean {
  return lease.state === 'active' && lease.settleCause === undefined && lease.expiresAt > now;
}

function leaseEnded(lease: Lease): BrokerError {
  return new BrokerError(
    'LEASE_ENDED',
    `lease ${lease.leaseId} has ended or was renewed already: ask for a new credential with a new request_id`,
  );
}

function refusal(
  decision: Exclude<BoundedDecision, { effect: 'allow' }> & { record?: Recorded },
  access: ToolAccess,
  line: Line,
): BrokerError {
  const { rule, record } = decision;
  const named = record === undefined ? {} : { decision: record.decisionId };
  const metadata = { tool: access.tool, tier: access.tier, rule, ...named };
  const name = `${access.tool}:${access.tier}`;
  if (line.renewedFrom !== undefined) {
    return notRenewed({ message: decision.reason, metadata }, access, line.renewedFrom);
  }
  if (decision.effect === 'too_late') return new BrokerError('DEADLINE_TOO_CLOSE', decision.reason, { metadata });
  return new BrokerError('POLICY_DENIED', `${name} is denied: ${decision.reason}`, { metadata });
}

function notRenewed(
  why: Pick<BrokerError, 'message' | 'metadata'>,
  access: ToolAccess,
  lease: Pick<Lease, 'expiresAt'>,
): BrokerError {
  const until = new Date(lease.expiresAt).toISOString();
  return new BrokerError(
    'RENEWAL_REFUSED',
    `${access.tool}:${access.tier} is not renewed: ${why.message}; the present credential lives until ${until}`,
    { metadata: { ...why.metadata, lives_until: until } },
  );
}

function decisionDetail(
  access: ToolAccess,
  decision: { effect: string; rule: string; reason: string; life?: Millis; on?: Approval; record?: Recorded },
  revision: PolicyRevision,
  line: Line,
): Record<string, unknown> {
  const { record } = decision;
  return {
    ...(record === undefined ? {} : { decision_id: record.decisionId }),
    tool: access.tool,
    tier: access.tier,
    effect: decision.effect,
    rule: decision.rule,
    reason: decision.reason,
    policy_revision: revision.digest,
    ...(decision.life === undefined ? {} : { ttl_ms: decision.life }),
    ...(line.arguments.digest === noArguments.digest
      ? {}
      : { arguments: line.arguments.values, arguments_digest: line.arguments.digest }),
    ...(decision.on === undefined ? {} : { approval: decision.on.approvalId }),
    ...(line.justification === '' ? {} : { justification: line.justification }),
    ...(line.renewedFrom === undefined ? {} : { renewal: line.renewedFrom.renewalCount + 1 }),
    ...(record === undefined ? {} : { asked: record.asked }),
  };
}

function issuedEvent(grant: Grant): AuditEvent {
  const { lease, task } = grant;
  return auditEvent(
    task,
    lease.renewedFrom === undefined ? 'lease.issued' : 'lease.renewed',
    lease.workload,
    lease.issuedAt,
    {
      tool: lease.tool,
      tier: lease.tier,
      provider: lease.provider,
      expires_at: new Date(lease.expiresAt).toISOString(),
      ...(lease.renewedFrom === undefined ? {} : { renewed_from: lease.renewedFrom }),
    },
    lease.leaseId,
  );
}

export function auditEvent(
  task: Pick<Task, 'tenant' | 'taskId'>,
  kind: AuditKind,
  actor: string,
  at: Instant,
  detail: Record<string, unknown>,
  leaseId?: string,
): AuditEvent {
  return {
    tenant: task.tenant,
    kind,
    at,
    actor,
    taskId: task.taskId,
    detail,
    ...(leaseId === undefined ? {} : { leaseId }),
  };
}
