import { ApprovalKind, ApprovalState, Verdict, type Approval } from '../gen/leasehold/v1/approval_service_pb.js';
import { tierName } from './names.ts';
import { fields, line, moment, relative, table, type Tone } from './output.ts';

export function approvalStateName(state: ApprovalState): string {
  return state === ApprovalState.UNSPECIFIED ? '' : (ApprovalState[state]?.toLowerCase() ?? `unknown(${state})`);
}

function tone(state: ApprovalState): Tone | undefined {
  if (state === ApprovalState.APPROVED) return 'good';
  if (state === ApprovalState.PENDING) return 'warn';
  return state === ApprovalState.DENIED || state === ApprovalState.TIMED_OUT ? 'bad' : undefined;
}

const emergency = (approval: Approval) => approval.kind === ApprovalKind.BREAK_GLASS;

/** All that a person has to know to decide. */
export function showApproval(approval: Approval | undefined): void {
  if (approval === undefined) return;
  const votes = approval.votes.map(
    ({ approver, verdict, comment }) =>
      `${verdict === Verdict.APPROVE ? 'yes' : 'NO'} ${approver}${comment === '' ? '' : ` "${comment}"`}`,
  );
  fields([
    ['approval', approval.approvalId],
    ['state', { text: approvalStateName(approval.state), tone: tone(approval.state) }],
    ['kind', emergency(approval) ? { text: 'BREAK-GLASS: sets policy aside', tone: 'bad' } : ''],
    ['use', `${approval.tool}:${tierName(approval.tier)}`],
    ['arguments', approval.arguments === undefined ? '' : argumentsText(approval.arguments)],
    ['reason', approval.reason],
    ['justification', approval.justification],
    ['intent', approval.intent],
    ['task', approval.taskId],
    ['agent', approval.agent],
    ['held by', approval.parentAgent === '' ? '' : `the task above, of agent ${approval.parentAgent}`],
    ['workload', approval.workload],
    ['opener', approval.opener],
    ['rule', approval.policyRule],
    ['revision', approval.policyRevision],
    ...approval.quorums.map(
      ({ count, given, approvers }) => ['needs', `${given} of ${count} from ${approvers.join(', ')}`] as const,
    ),
    ...votes.map((vote) => ['said', vote] as const),
    ['uses', `${approval.usesLeft} of ${approval.uses} left`],
    ['group', approval.groupId === approval.approvalId ? '' : approval.groupId],
    ['asked', moment(approval.requestTime)],
    ['decide by', approval.state === ApprovalState.PENDING ? moment(approval.decideBy) : ''],
    ['decided', moment(approval.decideTime)],
    ['usable until', moment(approval.expireTime)],
    ['ask again', moment(approval.coolDownUntil)],
  ]);
}

export function showApprovals(approvals: readonly Approval[]): void {
  if (approvals.length === 0) {
    line('no approvals');
    return;
  }
  table(
    ['APPROVAL', 'STATE', 'AGENT', 'USE', 'ARGUMENTS', 'DECIDE BY', 'WHY'],
    approvals.map((approval) => [
      approval.approvalId,
      { text: approvalStateName(approval.state), tone: tone(approval.state) },
      approval.agent,
      `${approval.tool}:${tierName(approval.tier)}`,
      shortened(argumentsText(approval.arguments ?? {})) || '-',
      approval.state === ApprovalState.PENDING ? relative(approval.decideBy) || 'now' : '-',
      `${emergency(approval) ? 'BREAK-GLASS: ' : ''}${approval.reason}`,
    ]),
  );
}

function argumentsText(args: object): string {
  return Object.entries(args)
    .map(([name, value]) => `${name}=${JSON.stringify(value)}`)
    .join(' ');
}

/** `approval get` has the whole. */
function shortened(text: string): string {
  return text.length > 60 ? `${text.slice(0, 59)}…` : text;
}
