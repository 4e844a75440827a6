import type { ToolCall } from '../gen/leasehold/v1/tool_call_service_pb.js';
import { callOutcomeName, callStateName, tierName, violationName, voucherName } from './names.ts';
import { fields, line, moment, relative, table, type Cell } from './output.ts';

/** One record, each part with who vouches for it. */
export function showCall(call: ToolCall): void {
  const { vouching, effect } = call;
  const vouched = (text: string, part: keyof NonNullable<typeof vouching> | undefined): string => {
    const voucher = part === undefined || vouching === undefined ? '' : voucherName(vouching[part] as number);
    return text === '' || voucher === '' ? text : `${text}  [${voucher}]`;
  };
  fields([
    ['call', call.callId],
    ['state', state(call)],
    ['raised', { text: call.violations.map(violationName).join(', '), tone: 'bad' }],
    ['task', call.taskId],
    ['intent', vouched(call.intent, 'intent')],
    ['actor', vouched(`${call.agent} (${call.workload})`, 'actor')],
    ['chain', call.chain.map((hop) => `${hop.agent} (${hop.taskId})`).join(' < ')],
    ['recorded by', call.reportedBy === call.workload ? '' : call.reportedBy],
    ['access', vouched(`${call.tool}:${tierName(call.tier)}`, 'access')],
    ['lease', vouched(call.leaseId, 'lease')],
    ['target', vouched(targetText(call.target), 'target')],
    ['action', vouched(call.action, 'action')],
    ['arguments', vouched(call.arguments === undefined ? '' : JSON.stringify(call.arguments), 'arguments')],
    ['digest', vouched(call.argumentsDigest, 'arguments')],
    ['peer', vouched([call.peer?.workload, call.peer?.address].filter(Boolean).join(' '), 'peer')],
    ['began', vouched(moment(call.startTime), 'times')],
    ['ended', vouched(moment(call.endTime), 'times')],
    ['outcome', vouched(callOutcomeName(call.outcome), 'outcome')],
    ['error', vouched(call.error, 'outcome')],
    ['effect', effect === undefined ? '' : vouched(effectText(effect), 'effect')],
    ['about', call.aboutCallId],
  ]);
}

export function showCalls(calls: readonly ToolCall[]): void {
  if (calls.length === 0) {
    line('no calls');
    return;
  }
  table(
    ['CALL', 'TASK', 'AGENT', 'ACCESS', 'ACTION', 'STATE', 'RECORDED', 'BY', 'RAISED'],
    calls.map((call) => [
      call.callId,
      call.taskId,
      call.agent,
      `${call.tool}:${tierName(call.tier)}`,
      call.action,
      state(call),
      relative(call.recordTime),
      call.reportedBy === call.workload ? 'agent' : 'tool',
      { text: call.violations.map(violationName).join(', ') || '-', ...(call.violations.length > 0 ? bad : {}) },
    ]),
  );
}

const bad = { tone: 'bad' } as const;

function state(call: ToolCall): Cell {
  const outcome = callOutcomeName(call.outcome);
  if (outcome === '') return { text: callStateName(call.state), tone: 'warn' };
  return { text: outcome, tone: outcome === 'succeeded' ? 'good' : 'bad' };
}

function targetText(target: Record<string, string>): string {
  return Object.entries(target)
    .map(([name, value]) => `${name}=${value}`)
    .join(' ');
}

function effectText({ objects, rows, externalIds, note }: NonNullable<ToolCall['effect']>): string {
  const parts = [rows === undefined ? '' : `${rows} rows`, objects.join(', '), externalIds.join(', '), note];
  return parts.filter((part) => part !== '').join('; ');
}
