import { canonicalArguments, type Arguments } from '../domain/arguments.ts';
import type { Approval, Vote } from '../domain/approvals/model.ts';
import type { NewApproval } from '../domain/approvals/store.ts';

type Row = Record<string, unknown>;

const instant = (value: unknown) => (value as Date).getTime();
const optionalInstant = (value: unknown) => (value === null ? undefined : instant(value));

/** Approvals with their votes, oldest first. To be followed by a WHERE on `a`. */
export const selectApprovals = `SELECT a.*, COALESCE((
    SELECT json_agg(json_build_object('approver', v.approver, 'verdict', v.verdict, 'comment', v.comment,
      'at', (extract(epoch FROM v.voted_at) * 1000)::float8, 'quorums', v.quorums) ORDER BY v.voted_at, v.approver)
    FROM approval_votes v WHERE v.tenant = a.tenant AND v.approval_id = a.approval_id), '[]'::json) AS votes
  FROM approvals a`;

export function approvalFromRow(row: Row): Approval {
  return {
    tenant: row['tenant'] as string,
    approvalId: row['approval_id'] as string,
    groupId: row['group_id'] as string,
    kind: row['kind'] as Approval['kind'],
    state: row['state'] as Approval['state'],
    taskId: row['task_id'] as string,
    intent: row['intent'] as string,
    opener: row['opener'] as string,
    agent: row['agent'] as string,
    parentAgent: (row['parent_agent'] as string | null) ?? undefined,
    workload: (row['workload'] as string | null) ?? undefined,
    excluded: row['excluded'] as string[],
    tool: row['tool'] as string,
    tier: row['tier'] as Approval['tier'],
    arguments: {
      values: JSON.parse(row['arguments'] as string) as Arguments,
      digest: row['arguments_digest'] as string,
    },
    policyRevision: row['policy_revision'] as string,
    policyRule: row['policy_rule'] as string,
    reason: row['reason'] as string,
    justification: row['justification'] as string,
    quorums: row['quorums'] as Approval['quorums'],
    uses: row['uses'] as number,
    usesLeft: row['uses_left'] as number,
    validFor: Number(row['valid_for_ms']),
    coolDown: Number(row['cool_down_ms']),
    requestedBy: row['requested_by'] as string,
    requestedAt: instant(row['requested_at']),
    decideBy: instant(row['decide_by']),
    decidedAt: optionalInstant(row['decided_at']),
    expiresAt: optionalInstant(row['expires_at']),
    coolDownUntil: optionalInstant(row['cool_down_until']),
    votes: row['votes'] as Vote[],
  };
}

export const insertApproval = `INSERT INTO approvals (tenant, approval_id, group_id, kind, task_id, intent, opener, agent, workload,
    excluded, tool, tier, arguments, arguments_digest, policy_revision, policy_rule, reason, justification, quorums,
    approvers, uses, uses_left, valid_for_ms, cool_down_ms, requested_by, requested_at, decide_by, parent_agent)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19::jsonb, $20, $21, $21, $22,
    $23, $24, $25, $26, $27)`;

export function approvalValues(approval: NewApproval & { groupId: string }): unknown[] {
  return [
    approval.tenant,
    approval.approvalId,
    approval.groupId,
    approval.kind,
    approval.taskId,
    approval.intent,
    approval.opener,
    approval.agent,
    approval.workload ?? null,
    approval.excluded,
    approval.tool,
    approval.tier,
    canonicalArguments(approval.arguments.values),
    approval.arguments.digest,
    approval.policyRevision,
    approval.policyRule,
    approval.reason,
    approval.justification,
    JSON.stringify(approval.quorums),
    [...new Set(approval.quorums.flatMap(({ approvers }) => approvers))],
    approval.uses,
    approval.validFor,
    approval.coolDown,
    approval.requestedBy,
    new Date(approval.requestedAt),
    new Date(approval.decideBy),
    approval.parentAgent ?? null,
  ];
}
