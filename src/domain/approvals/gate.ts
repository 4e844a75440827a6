import type { DeclaredArguments } from '../arguments.ts';
import type { AuditEvent } from '../audit.ts';
import type { Caller } from '../caller.ts';
import type { BoundedDecision, Granted } from '../decision.ts';
import { BrokerError } from '../errors.ts';
import type { NewId } from '../ids.ts';
import type { Lease, Task, ToolAccess } from '../model.ts';
import type { PolicyRevision } from '../policy.ts';
import type { TaskStore } from '../store.ts';
import type { Emit } from '../telemetry.ts';
import type { Instant, Millis } from '../time.ts';
import { approvalEvent, newRequest, notice } from './build.ts';
import { isHeldFor, meets } from './for-child.ts';
import { lineageOf } from './lineage.ts';
import { usable, type Approval } from './model.ts';
import { approvalNotFound, asked, resolveQuorums } from './people.ts';
import type { ApprovalStore, ExactUse } from './store.ts';

/** How often people may be asked. */
export interface FatigueLimits {
  /** Most requests of one task that wait at once. */
  maxPending: number;
  /** Most requests of one agent in an hour. */
  perHour: number;
}

export const hour: Millis = 3_600_000;

export interface GateOptions {
  newId: NewId;
  store: ApprovalStore;
  tasks: Pick<TaskStore, 'get'>;
  limits: FatigueLimits;
  emit: Emit;
}

export interface GateInput {
  caller: Caller;
  task: Task;
  access: ToolAccess;
  arguments: DeclaredArguments;
  /** Name of the approval that the caller wants to use. */
  named: string | undefined;
  justification: string;
  decision: Exclude<BoundedDecision, { effect: 'allow' }>;
  revision: PolicyRevision;
  now: Instant;
  /** What else the audit says of this refusal; written together with a new request. */
  refused: readonly AuditEvent[];
}

/** Either the approval on which it may be issued, or why not. `recorded`: the audit has it already. */
export type Passage =
  { approval: Approval; granted: Granted } | { error: BrokerError; approval: Approval; recorded: boolean };

export type ApprovalGate = ReturnType<typeof createApprovalGate>;

/** What stands between a decision that is no allow and a credential. Undefined: no approval can help here. */
export function createApprovalGate(options: GateOptions) {
  const { store } = options;

  return {
    pass: async (input: GateInput): Promise<Passage | undefined> => {
      const { decision, task, access, now } = input;
      if (decision.effect === 'too_late' || decision.granted === undefined) return undefined;
      const { granted } = decision;
      const emergency = await store.emergency(task.tenant, task.taskId, access);
      if (emergency !== undefined && usable(emergency, now)) {
        return { approval: emergency, granted: withinApproval(granted, emergency, now) };
      }
      if (decision.effect === 'deny') return undefined;
      if (input.named !== undefined) {
        const approval = await store.get(task.tenant, input.named);
        if (approval === undefined || !(await mayName(input, approval))) throw approvalNotFound(input.named);
        // What people refused to this very task, those above it do not get for it.
        const own = isHeldFor(approval, task) ? await store.find(ofTask(input), now) : undefined;
        return passage(own !== undefined && isRefused(own) ? own : approval, input, decision);
      }
      return await found(input, decision);
    },

    /** Renewals and time since the line of this lease was last issued on an approval; undefined when it never was. */
    since: async (lease: Lease, now: Instant): Promise<{ count: number; age: Millis } | undefined> => {
      const last = await store.lastUse(lease);
      return last && { count: lease.renewalCount - last.renewalCount, age: now - last.at };
    },
  };

  async function found(input: GateInput, decision: Needed): Promise<Passage> {
    const { task, access, now, revision } = input;
    const { granted } = decision;
    const wanted = { access, arguments: input.arguments, ...decision, justification: input.justification };
    const known = await store.find(ofTask(input), now);
    if (known !== undefined && (usable(known, now) || isRefused(known))) return passage(known, input, decision);
    if (task.parentTaskId !== undefined) {
      const held = await store.find({ ...ofTask(input), kind: 'for_child', taskId: task.parentTaskId }, now);
      if (held !== undefined && isRefused(held)) return passage(held, input, decision);
      // Of two that wait its own is told; of one that waits and one that people have agreed to, the latter.
      const counts = held !== undefined && (usable(held, now) || known === undefined);
      if (counts && isEnough(held, input, decision)) return passage(held, input, decision);
    }
    if (known !== undefined) return passage(known, input, decision);
    const lineage = await lineageOf(options.tasks, task);
    const asking = { newId: options.newId, task, lineage, revision, by: input.caller.workload, now };
    const [result] = await store.request(
      [newRequest(asking, wanted, decision.approval, granted.tool)],
      { ...limitsAt(options.limits, now), epoch: task.epoch },
      (made) => ({
        events: [
          ...made.map((approval) => requestedEvent(approval, input.caller.workload, now)),
          ...(made.length > 0 ? input.refused : []),
        ],
        notices: notice('approval.requested', ungrouped(made), now),
      }),
    );
    const { approval, asked: isNew } = result!;
    if (isNew) {
      const { tenant, taskId, approvalId, agent, tool, tier } = approval;
      options.emit('approval.requested', { tenant, taskId, approvalId, agent, tool, tier });
    }
    return passage(approval, input, decision, isNew);
  }

  async function mayName({ caller, task }: GateInput, approval: Approval): Promise<boolean> {
    return (
      asked(caller, approval) ||
      isHeldFor(approval, task) ||
      (approval.kind === 'for_child' && (await store.isPartyTo(approval, caller.workload)))
    );
  }
}

type Needed = BoundedDecision & { effect: 'needs_approval' };

function ofTask({ task, access, arguments: declared, revision }: GateInput): ExactUse {
  return { ...task, ...access, kind: 'request', arguments: declared, policyRevision: revision.digest };
}

function passage(approval: Approval, input: GateInput, decision: Needed, recorded = false): Passage {
  const error = unfit(approval, input, decision);
  return error === undefined ? { approval, granted: decision.granted } : { error, approval, recorded };
}

function isRefused({ state }: Approval): boolean {
  return state === 'denied' || state === 'timed_out';
}

function isEnough(approval: Approval, { task, revision }: GateInput, { approval: terms, granted }: Needed): boolean {
  if (approval.kind !== 'for_child') return true;
  return meets(approval, terms, resolveQuorums(terms, granted.tool, revision.agents.get(task.agent)));
}

export function limitsAt(limits: FatigueLimits, now: Instant) {
  return { maxPending: limits.maxPending, since: now - hour, maxSince: limits.perHour };
}

export function requestedEvent(approval: Approval, actor: string, at: Instant): AuditEvent {
  return approvalEvent(approval, 'approval.requested', actor, at, {
    group: approval.groupId,
    rule: approval.policyRule,
    reason: approval.reason,
    decide_by: new Date(approval.decideBy).toISOString(),
    uses: approval.uses,
    quorums: approval.quorums,
    ...(approval.justification === '' ? {} : { justification: approval.justification }),
  });
}

/** What joined a group that people were told of is no news to them. */
export function ungrouped(made: readonly Approval[]): readonly Approval[] {
  const ids = new Set(made.map(({ approvalId }) => approvalId));
  return made.filter(({ groupId }) => ids.has(groupId));
}

/** A credential issued in an emergency ends with it. */
function withinApproval(granted: Granted, approval: Approval, now: Instant): Granted {
  return { ...granted, life: Math.min(granted.life, (approval.expiresAt ?? now) - now) };
}

/** Why this approval does not allow this use, each with its own reason. Undefined: it does. */
function unfit(approval: Approval, input: GateInput, decision: Needed): BrokerError | undefined {
  const { approvalId } = approval;
  const { task, access, now } = input;
  const metadata: Record<string, string> = { approval: approvalId, tool: access.tool, tier: access.tier };
  const holder = approval.kind === 'for_child' ? task.parentTaskId : task.taskId;
  const differs =
    approval.taskId !== holder
      ? 'task'
      : approval.agent !== task.agent
        ? 'agent'
        : approval.workload !== undefined && approval.workload !== input.caller.workload
          ? 'workload'
          : approval.kind === 'break_glass' || approval.tool !== access.tool
            ? 'tool'
            : approval.tier !== access.tier
              ? 'tier'
              : approval.arguments.digest !== input.arguments.digest
                ? 'arguments'
                : approval.policyRevision !== input.revision.digest
                  ? 'policy_revision'
                  : !isRefused(approval) && !isEnough(approval, input, decision)
                    ? 'terms'
                    : undefined;
  if (differs !== undefined) {
    return new BrokerError(
      'APPROVAL_MISMATCH',
      `approval ${approvalId} is for another ${differs.replace('_', ' ')}: it covers one exact use; ask without naming it, and people are asked anew`,
      { metadata: { ...metadata, differs } },
    );
  }
  switch (approval.state) {
    case 'pending':
      if (now >= approval.decideBy) return denied(approval, metadata, now);
      return new BrokerError(
        'APPROVAL_REQUIRED',
        `${access.tool}:${access.tier} needs an approval: ${approval.reason}; ${approvalId} waits for people until ${iso(approval.decideBy)}: follow it with WatchApproval, then ask again`,
        { metadata: { ...metadata, rule: approval.policyRule, decide_by: iso(approval.decideBy) } },
      );
    case 'approved':
      if (now < (approval.expiresAt ?? 0)) return undefined;
      return expired(approval, metadata);
    case 'expired':
      return expired(approval, metadata);
    case 'used':
      return new BrokerError(
        'APPROVAL_USED',
        `approval ${approvalId} covered ${approval.uses === 1 ? 'one use' : `${approval.uses} uses`}, which are used: ask again without naming it`,
        { metadata },
      );
    case 'denied':
    case 'timed_out':
      return denied(approval, metadata, now);
    case 'cancelled':
      return new BrokerError('APPROVAL_SETTLED', `approval ${approvalId} ended with its task`, { metadata });
  }
}

function expired(approval: Approval, metadata: Record<string, string>): BrokerError {
  return new BrokerError(
    'APPROVAL_EXPIRED',
    `approval ${approval.approvalId} could be used until ${iso(approval.expiresAt ?? 0)}: ask again without naming it`,
    { metadata },
  );
}

function denied(approval: Approval, metadata: Record<string, string>, now: Instant): BrokerError {
  const why =
    approval.state === 'denied' ? 'was denied' : `was not decided by ${iso(approval.decideBy)}, which is a deny`;
  const until = approval.coolDownUntil ?? now;
  const wait = until > now;
  return new BrokerError(
    'APPROVAL_DENIED',
    `approval ${approval.approvalId} ${why}; ${wait ? `people are not asked about this again before ${iso(until)}` : 'ask again without naming it'}`,
    {
      metadata: { ...metadata, cause: approval.state === 'denied' ? 'denied' : 'timed_out', ask_again: iso(until) },
      ...(wait ? { retryAfterMs: until - now } : {}),
    },
  );
}

function iso(at: Instant): string {
  return new Date(at).toISOString();
}
