import type { DeclaredArguments } from '../arguments.ts';
import type { Tier } from '../model.ts';
import type { Quorum } from '../policy.ts';
import type { Instant, Millis } from '../time.ts';

/** `for_child`: policy asks for it, and the task holds it for tasks directly below it of a named agent. */
export type ApprovalKind = 'request' | 'break_glass' | 'for_child';

export type ApprovalState = 'pending' | 'approved' | 'used' | 'expired' | 'denied' | 'timed_out' | 'cancelled';

export type Verdict = 'approve' | 'deny';

/** One person's word. */
export interface Vote {
  approver: string;
  verdict: Verdict;
  comment: string;
  at: Instant;
  /** Positions of the quorums that it counts for. */
  quorums: readonly number[];
}

/** One request to people and what became of it: for one task, agent, tool, tier, arguments and policy revision. */
export interface Approval {
  tenant: string;
  approvalId: string;
  /** Those that belong together carry the name of the first. */
  groupId: string;
  kind: ApprovalKind;
  state: ApprovalState;
  taskId: string;
  intent: string;
  opener: string;
  /** Whoever may use it: the task's agent, or the one below it that it is for. */
  agent: string;
  /** Agent of the task that holds it for one below; undefined when it is for the task itself. */
  parentAgent: string | undefined;
  /** Undefined while the task has no workload yet, which then takes one and keeps it; and when it is for one below. */
  workload: string | undefined;
  /** Workloads that have asked for the work, this task's and those above it: they never decide. */
  excluded: readonly string[];
  tool: string;
  tier: Tier;
  arguments: DeclaredArguments;
  policyRevision: string;
  policyRule: string;
  reason: string;
  justification: string;
  /** Names are resolved: owners by name, no placeholder. */
  quorums: readonly Quorum[];
  uses: number;
  usesLeft: number;
  validFor: Millis;
  coolDown: Millis;
  requestedBy: string;
  requestedAt: Instant;
  decideBy: Instant;
  decidedAt: Instant | undefined;
  expiresAt: Instant | undefined;
  coolDownUntil: Instant | undefined;
  votes: readonly Vote[];
}

/** Approvers of a break-glass: anybody who holds the role. */
export const anyApprover = '*';

/** How many people of each quorum have agreed. */
export function given(approval: Pick<Approval, 'quorums' | 'votes'>): number[] {
  return approval.quorums.map(
    (_, index) =>
      approval.votes.filter(({ verdict, quorums }) => verdict === 'approve' && quorums.includes(index)).length,
  );
}

export function quorate(approval: Pick<Approval, 'quorums' | 'votes'>): boolean {
  const counts = given(approval);
  return approval.quorums.every(({ count }, index) => counts[index]! >= count);
}

/** Whether it can be used now, by its own account; the write asks the database again. */
export function usable(approval: Approval, now: Instant): boolean {
  return approval.state === 'approved' && approval.usesLeft > 0 && now < (approval.expiresAt ?? 0);
}
