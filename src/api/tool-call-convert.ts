import { create, type JsonObject, type MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { CallEnd, CallOutcome, CallViolation, ToolCall } from '../domain/calls/model.ts';
import { callViolations, stateOf } from '../domain/calls/model.ts';
import { vouchingOf, type Voucher } from '../domain/calls/vouching.ts';
import { fieldInvalid } from '../domain/errors.ts';
import {
  ToolCallOutcome,
  ToolCallReporter,
  ToolCallSchema,
  ToolCallState,
  type ToolCallVouchingSchema,
  Voucher as VoucherMessage,
  type ToolCallEffect,
  type ToolCallViolation,
} from '../gen/leasehold/v1/tool_call_service_pb.js';
import { optional, tierMessage, time } from './convert.ts';
import { text } from './fields.ts';

const outcomes = {
  succeeded: ToolCallOutcome.SUCCEEDED,
  failed: ToolCallOutcome.FAILED,
  refused: ToolCallOutcome.REFUSED,
  unknown: ToolCallOutcome.UNKNOWN,
} as const;

const states = {
  running: ToolCallState.RUNNING,
  ended: ToolCallState.ENDED,
  unfinished: ToolCallState.UNFINISHED,
} as const;

const vouchers = {
  broker_attested: VoucherMessage.BROKER_ATTESTED,
  target_attested: VoucherMessage.TARGET_ATTESTED,
  self_reported: VoucherMessage.SELF_REPORTED,
} as const;

export function voucherMessage(voucher: Voucher | undefined): VoucherMessage {
  return voucher === undefined ? VoucherMessage.UNSPECIFIED : vouchers[voucher];
}

/** The contract numbers them in the domain's order, from 1. */
function violationMessage(violation: CallViolation): ToolCallViolation {
  return callViolations.indexOf(violation) + 1;
}

export function outcomeOf(field: string, value: ToolCallOutcome): CallOutcome {
  const found = Object.entries(outcomes).find(([, message]) => message === value);
  if (found === undefined) throw fieldInvalid(field, 'is required: how the call ended');
  return found[0] as CallOutcome;
}

const maxList = 32;
const maxItem = 256;
const maxText = 500;
const maxEffectBytes = 8_192;

/** Free text and names of the reporter's own: bounded, and without what looks like a secret. */
export function endOf(
  sent: { outcome: ToolCallOutcome; error: string; effect?: ToolCallEffect | undefined },
  redact: (text: string) => string,
): CallEnd {
  return {
    outcome: outcomeOf('outcome', sent.outcome),
    error: redact(text('error', sent.error, 0, maxText)),
    effect: sent.effect && effectOf(sent.effect, redact),
  };
}

function effectOf(sent: ToolCallEffect, redact: (text: string) => string): CallEnd['effect'] {
  const items = (field: string, values: readonly string[]) => {
    if (values.length > maxList) throw fieldInvalid(field, `must be at most ${maxList}`);
    return values.map((value, index) => redact(text(`${field}[${index}]`, value, 1, maxItem)));
  };
  const effect = {
    objects: items('effect.objects', sent.objects),
    rows: rowsOf(sent.rows),
    externalIds: items('effect.external_ids', sent.externalIds),
    note: redact(text('effect.note', sent.note, 0, maxText)),
  };
  if (Buffer.byteLength(JSON.stringify(effect)) > maxEffectBytes) {
    throw fieldInvalid('effect', `must be at most ${maxEffectBytes} bytes`);
  }
  const isEmpty = effect.objects.length + effect.externalIds.length === 0 && effect.note === '';
  return isEmpty && effect.rows === undefined ? undefined : effect;
}

function rowsOf(rows: bigint | undefined): number | undefined {
  if (rows === undefined) return undefined;
  if (rows < 0n || rows > BigInt(Number.MAX_SAFE_INTEGER)) throw fieldInvalid('effect.rows', 'is not a number of rows');
  return Number(rows);
}

export function callMessage(call: ToolCall): MessageInitShape<typeof ToolCallSchema> {
  const { end } = call;
  return create(ToolCallSchema, {
    callId: call.callId,
    taskId: call.taskId,
    rootTaskId: call.rootTaskId,
    agent: call.agent,
    workload: call.workload,
    chain: call.chain.map((hop) => ({ ...hop, workload: hop.workload ?? '' })),
    intent: call.intent,
    reporter: call.reporter === 'tool' ? ToolCallReporter.TOOL : ToolCallReporter.AGENT,
    reportedBy: call.reportedBy,
    tool: call.tool,
    tier: tierMessage(call.tier),
    leaseId: call.leaseId ?? '',
    action: call.action,
    argumentsDigest: call.argumentsDigest ?? '',
    ...optional('arguments', call.arguments as JsonObject | undefined),
    target: { ...call.target },
    state: states[stateOf(call)],
    outcome: end === undefined ? ToolCallOutcome.UNSPECIFIED : outcomes[end.outcome],
    error: end?.error ?? '',
    startTime: timestampFromMs(call.startedAt),
    ...optional('endTime', time(call.endedAt)),
    recordTime: timestampFromMs(call.recordedAt),
    ...optional('unfinishedTime', time(call.unfinishedAt)),
    ...optional('effect', effectMessage(end?.effect)),
    violations: call.violations.map(violationMessage),
    aboutCallId: call.aboutCallId ?? '',
    ...optional('peer', call.peer),
    vouching: vouchingMessage(call),
  });
}

function effectMessage(effect: CallEnd['effect']) {
  if (effect === undefined) return undefined;
  const { objects, rows, externalIds, note } = effect;
  return {
    objects: [...objects],
    externalIds: [...externalIds],
    note,
    ...optional('rows', rows === undefined ? undefined : BigInt(rows)),
  };
}

function vouchingMessage(call: ToolCall): MessageInitShape<typeof ToolCallVouchingSchema> {
  return Object.fromEntries(
    Object.entries(vouchingOf(call) as unknown as Record<string, Voucher | undefined>).map(([part, voucher]) => [
      part,
      voucherMessage(voucher),
    ]),
  );
}
