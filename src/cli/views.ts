import { durationMs } from '@bufbuild/protobuf/wkt';
import type { Lease, PlanEntry } from '../gen/leasehold/v1/common_pb.js';
import type { LeaseSummary, Task, TaskNode } from '../gen/leasehold/v1/task_service_pb.js';
import {
  closeCauseName,
  effectName,
  effectTone,
  leaseStateName,
  leaseTone,
  outcomeName,
  revocationName,
  senderConstraintName,
  taskStateName,
  taskTone,
  tierName,
} from './names.ts';
import { fields, iso, line, moment, relative, span, table } from './output.ts';

/** What several commands show alike. */

export function showTask(task: Task | undefined): void {
  if (task === undefined) return;
  const cause = closeCauseName(task.closeCause);
  fields([
    ['task', task.taskId],
    ['state', { text: `${taskStateName(task.state)}${cause === '' ? '' : ` (${cause})`}`, tone: taskTone(task.state) }],
    ['intent', task.intent],
    ['agent', task.agent],
    ['workload', task.agentWorkload],
    ['opener', task.opener],
    ['parent', task.parentTaskId],
    ['tools', task.tools.map(({ tool, tier }) => `${tool}:${tierName(tier)}`).join(', ')],
    [
      'context',
      Object.entries(task.context)
        .map((entry) => entry.join('='))
        .join(', '),
    ],
    [
      'labels',
      Object.entries(task.labels)
        .map((entry) => entry.join('='))
        .join(', '),
    ],
    ['opened', moment(task.openTime)],
    ['deadline', moment(task.deadline)],
    ['heartbeat', task.heartbeatInterval === undefined ? '' : `every ${span(durationMs(task.heartbeatInterval))}`],
    ['closed', moment(task.closeTime)],
    ['settled', moment(task.settleTime)],
  ]);
}

export function showPlan(plan: readonly PlanEntry[]): void {
  table(
    ['TOOL', 'TIER', 'PLAN', 'TTL', 'REVOCATION', 'WHY'],
    plan.map((entry) => [
      entry.tool,
      tierName(entry.tier),
      { text: effectName(entry.effect), tone: effectTone(entry.effect) },
      entry.ttl === undefined ? '-' : span(durationMs(entry.ttl)),
      revocationName(entry.revocationKind) || '-',
      planNote(entry),
    ]),
  );
}

function planNote({ policyRule, possible, reason, senderConstraint }: PlanEntry): string {
  const rule = policyRule === '' ? '' : ` [${policyRule}]`;
  const outcomes = possible.length === 0 ? '' : ` (${possible.map(effectName).join(' or ')})`;
  const bound = senderConstraintName(senderConstraint);
  return `${reason}${outcomes}${rule}${bound === '' ? '' : `; bound by ${bound}`}`;
}

export function showLeases(leases: readonly Lease[], withTask = false): void {
  if (leases.length === 0) {
    line('no leases');
    return;
  }
  table(
    ['LEASE', ...(withTask ? ['TASK'] : []), 'TOOL', 'TIER', 'STATE', 'ISSUED', 'EXPIRES', 'REVOCATION', 'NOTE'],
    leases.map((lease) => [
      lease.leaseId,
      ...(withTask ? [lease.taskId] : []),
      lease.tool,
      tierName(lease.tier),
      { text: outcomeName(lease.outcome) || leaseStateName(lease.state), tone: leaseTone(lease) },
      relative(lease.issueTime) || '-',
      relative(lease.expireTime) || '-',
      revocationName(lease.revocationKind),
      leaseNote(lease),
    ]),
  );
}

/** Indented by level, each below its parent, however the pages came. */
export function showTree(nodes: readonly TaskNode[]): void {
  const known = new Set(nodes.map(({ taskId }) => taskId));
  const children = Map.groupBy(nodes, ({ parentTaskId }) => (known.has(parentTaskId) ? parentTaskId : ''));
  const rows: [TaskNode, number][] = [];
  const waiting = (children.get('') ?? []).map((node): [TaskNode, number] => [node, 0]).reverse();
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    rows.push(next);
    const [{ taskId }, level] = next;
    for (const child of (children.get(taskId) ?? []).toReversed()) waiting.push([child, level + 1]);
  }
  table(
    ['TASK', 'STATE', 'AGENT', 'DEADLINE', 'LEASES'],
    rows.map(([node, level]) => {
      const cause = closeCauseName(node.closeCause);
      return [
        `${'  '.repeat(level)}${node.taskId}`,
        {
          text: `${taskStateName(node.state)}${cause === '' ? '' : ` (${cause})`}`,
          tone: taskTone(node.state),
        },
        node.agent,
        relative(node.deadline) || '-',
        summaryText(node.summary),
      ];
    }),
  );
}

function leaseNote(lease: Lease): string {
  const { settlement } = lease;
  if (settlement !== undefined && settlement.abandonedBy !== '') {
    return `abandoned by ${settlement.abandonedBy}: ${settlement.abandonReason}`;
  }
  if (lease.deadBy !== undefined) return `dead by ${iso(lease.deadBy)}`;
  if (lease.settleError !== '') return `${lease.settleAttempts} attempts: ${lease.settleError}`;
  return lease.renewedFromLeaseId === '' ? '' : `renews ${lease.renewedFromLeaseId}`;
}

export function summaryText(summary: LeaseSummary | undefined): string {
  if (summary === undefined) return '';
  const { unsettled, revoked, expired, returned, bounded, irrevocable } = summary;
  const parts = Object.entries({ unsettled, revoked, expired, returned, bounded, irrevocable }).filter(
    ([, n]) => n > 0,
  );
  return parts.length === 0 ? 'no leases' : parts.map(([name, n]) => `${n} ${name}`).join(', ');
}
