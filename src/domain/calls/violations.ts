import { limitFault, type Arguments } from '../arguments.ts';
import type { Lease, Task, Tier } from '../model.ts';
import type { ToolTier } from '../policy.ts';
import type { Instant, Millis } from '../time.ts';
import type { CallReporter, CallViolation, ToolCall } from './model.ts';

export interface JudgedCall {
  reporter: CallReporter;
  task: Task;
  leaseId: string | undefined;
  /** Undefined: the task has no such lease. */
  lease: Lease | undefined;
  tool: string;
  tier: Tier;
  /** As registered now; undefined when it is not. */
  registered: ToolTier | undefined;
  action: string;
  arguments: Arguments | undefined;
  argumentsDigest: string | undefined;
  /** Who used the credential: the caller, or whom the tool saw. */
  usedBy: string | undefined;
  startedAt: Instant;
  receivedAt: Instant;
  /** What the agent said about the same call. */
  about: Pick<ToolCall, 'tool' | 'tier' | 'leaseId' | 'action' | 'argumentsDigest'> | undefined;
}

/**
 * An agent records what is over within this; later, its word on when it was counts no more. A tool's word does: it has
 * nothing to hide, and may have been cut off from the broker.
 */
const lateRecord: Millis = 60_000;

/** In what a call does not fit what was granted. Pure: the record is made in any case, and never decides by itself. */
export function violationsOf(call: JudgedCall): CallViolation[] {
  const { task, lease, registered, about } = call;
  const found = new Set<CallViolation>();
  if (call.leaseId === undefined) found.add('no_lease');
  else if (lease === undefined) found.add('lease_unknown');
  else {
    if (after(call, leaseEnd(lease, task, call.receivedAt))) found.add('lease_ended');
    if (lease.tool !== call.tool) found.add('other_tool');
    else if (lease.tier !== call.tier) found.add('other_tier');
    if (call.usedBy !== undefined && call.usedBy !== lease.workload) found.add('other_workload');
    if (beyondTerms(lease, call.arguments)) found.add('other_arguments');
  }
  if (task.closedAt !== undefined && after(call, task.closedAt)) found.add('task_ended');
  if (!task.tools.some(({ tool, tier }) => tool === call.tool && tier === call.tier)) found.add('undeclared_tool');
  if (registered !== undefined && registered.actions.length > 0 && !registered.actions.includes(call.action)) {
    found.add('undeclared_action');
  }
  if (about !== undefined && contradicts(call, about)) found.add('contradicted');
  return [...found];
}

function after(call: JudgedCall, end: Instant): boolean {
  return call.startedAt > end || (call.reporter === 'agent' && call.receivedAt > end + lateRecord);
}

/** A lease that is on its way to an outcome has no time of its own for that: its task's close, or now. */
function leaseEnd(lease: Lease, task: Task, now: Instant): Instant {
  const ended =
    lease.settledAt ?? (lease.state === 'settling' && lease.settleCause !== 'expired' ? now : lease.expiresAt);
  return Math.min(lease.expiresAt, ended, lease.settleCause === 'closed' ? (task.closedAt ?? ended) : ended);
}

/** The lease was issued for these arguments, or within these limits. What the call does not say is not held against it. */
function beyondTerms({ terms }: Lease, sent: Arguments | undefined): boolean {
  if (terms === undefined || sent === undefined) return false;
  return Object.entries(sent).some(([name, value]) => {
    const declared = terms.arguments.values;
    if (Object.hasOwn(declared, name)) return declared[name] !== value;
    const limit = Object.hasOwn(terms.argumentLimits, name) ? terms.argumentLimits[name] : undefined;
    return limit !== undefined && limitFault(limit, value) !== undefined;
  });
}

function contradicts(call: JudgedCall, about: NonNullable<JudgedCall['about']>): boolean {
  return (
    about.tool !== call.tool ||
    about.tier !== call.tier ||
    (about.leaseId !== undefined && about.leaseId !== call.leaseId) ||
    about.action !== call.action ||
    (about.argumentsDigest !== undefined &&
      call.argumentsDigest !== undefined &&
      about.argumentsDigest !== call.argumentsDigest)
  );
}
