import { noArguments, type DeclaredArguments } from '../arguments.ts';
import type { AuditEvent, AuditKind } from '../audit.ts';
import type { NewId } from '../ids.ts';
import type { Task, ToolAccess } from '../model.ts';
import type { ApprovalTerms, PolicyRevision, Quorum, Tool } from '../policy.ts';
import type { Instant, Millis } from '../time.ts';
import { anyApprover, type Approval } from './model.ts';
import { resolveQuorums } from './people.ts';
import type { NewApproval, Notice } from './store.ts';

/** Makes requests, and what the audit and the approvers are told of them. Pure. */

export interface Wanted {
  access: ToolAccess;
  arguments: DeclaredArguments;
  rule: string;
  reason: string;
  justification: string;
}

interface Asking {
  newId: NewId;
  task: Task;
  /** Openers and agents of this task and of those above it. */
  lineage: readonly string[];
  revision: PolicyRevision;
  /** Workload that asks. */
  by: string;
  now: Instant;
}

/** `child`: the agent of the tasks directly below that it is for. */
export function newRequest(
  asking: Asking,
  wanted: Wanted,
  terms: ApprovalTerms,
  tool: Tool,
  child?: string,
): NewApproval {
  const { task, revision, now } = asking;
  return {
    ...common(asking, wanted),
    kind: 'request',
    ...(child === undefined ? {} : { kind: 'for_child', agent: child, parentAgent: task.agent, workload: undefined }),
    quorums: resolveQuorums(terms, tool, revision.agents.get(child ?? task.agent)),
    uses: terms.uses,
    validFor: terms.validFor,
    coolDown: terms.coolDown,
    // Nothing can be issued after the deadline: nobody needs to be asked for longer.
    decideBy: Math.min(now + terms.decideWithin, task.deadline),
    votes: [],
  };
}

/** Two people, half an hour, and a bound on how often it can be used. */
export const breakGlass = {
  count: 2,
  validFor: 1_800_000,
  decideWithin: 900_000,
  uses: 1_000,
} as const satisfies Record<string, number | Millis>;

/** The one who breaks the glass is the first of the two. */
export function newBreakGlass(asking: Asking, access: ToolAccess, reason: string): NewApproval {
  const wanted = { access, arguments: noArguments, rule: 'break-glass', reason, justification: '' };
  const quorum: Quorum = { rule: 'break-glass', approvers: [anyApprover], count: breakGlass.count };
  return {
    ...common(asking, wanted),
    kind: 'break_glass',
    quorums: [quorum],
    uses: breakGlass.uses,
    validFor: breakGlass.validFor,
    coolDown: 0,
    decideBy: Math.min(asking.now + breakGlass.decideWithin, asking.task.deadline),
    votes: [{ approver: asking.by, verdict: 'approve', comment: reason, at: asking.now, quorums: [0] }],
  };
}

function common({ newId, task, lineage, revision, by, now }: Asking, wanted: Wanted) {
  return {
    tenant: task.tenant,
    approvalId: newId('apr'),
    taskId: task.taskId,
    intent: task.intent,
    opener: task.opener,
    agent: task.agent,
    parentAgent: undefined,
    workload: task.agentWorkload,
    excluded: lineage,
    tool: wanted.access.tool,
    tier: wanted.access.tier,
    arguments: wanted.arguments,
    policyRevision: revision.digest,
    policyRule: wanted.rule,
    reason: wanted.reason,
    justification: wanted.justification,
    requestedBy: by,
    requestedAt: now,
  };
}

/** What every event of an approval says: which exact use it is about. */
export function approvalEvent(
  approval: Approval,
  kind: AuditKind,
  actor: string,
  at: Instant,
  detail: Record<string, unknown> = {},
): AuditEvent {
  return {
    tenant: approval.tenant,
    kind,
    at,
    actor,
    taskId: approval.taskId,
    detail: {
      approval: approval.approvalId,
      tool: approval.tool,
      tier: approval.tier,
      arguments_digest: approval.arguments.digest,
      policy_revision: approval.policyRevision,
      ...(approval.kind === 'break_glass' ? { break_glass: true } : {}),
      ...(approval.kind === 'for_child' ? { for_agent: approval.agent, held_by: approval.taskId } : {}),
      ...detail,
    },
  };
}

/** Ids and names only: an endpoint is somebody else's machine. Who may look sees the rest with GetApproval. */
export function notice(type: string, approvals: readonly Approval[], at: Instant): Notice[] {
  const [first] = approvals;
  if (first === undefined) return [];
  return [
    {
      type,
      data: {
        group: first.groupId,
        task: first.taskId,
        agent: first.parentAgent ?? first.agent,
        requested_by: first.requestedBy,
        at: new Date(at).toISOString(),
        approvals: approvals.map((approval) => ({
          approval: approval.approvalId,
          kind: approval.kind,
          ...(approval.kind === 'for_child' ? { for_agent: approval.agent } : {}),
          state: approval.state,
          tool: approval.tool,
          tier: approval.tier,
          arguments_digest: approval.arguments.digest,
          policy_revision: approval.policyRevision,
          policy_rule: approval.policyRule,
          approvers: approval.quorums.map(({ approvers, count }) => ({ any_of: approvers, count })),
          decide_by: new Date(approval.decideBy).toISOString(),
          ...(approval.expiresAt === undefined ? {} : { expires_at: new Date(approval.expiresAt).toISOString() }),
        })),
      },
    },
  ];
}
