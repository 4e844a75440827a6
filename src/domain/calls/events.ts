import { auditEvent, type AuditEvent, type AuditKind } from '../audit.ts';
import type { Instant } from '../time.ts';
import type { CallEnd, CallViolation, ToolCall } from './model.ts';
import { vouchingOf } from './vouching.ts';

const iso = (at: Instant) => new Date(at).toISOString();

/** The whole of the record, so that the log of events alone is evidence of it. */
function detailOf(call: ToolCall): Record<string, unknown> {
  return {
    call_id: call.callId,
    reporter: call.reporter,
    agent: call.agent,
    workload: call.workload,
    tool: call.tool,
    tier: call.tier,
    action: call.action,
    ...(call.chain.length === 0 ? {} : { chain: call.chain }),
    ...(call.argumentsDigest === undefined ? {} : { arguments_digest: call.argumentsDigest }),
    ...(call.arguments === undefined ? {} : { arguments: call.arguments }),
    ...(call.target === undefined ? {} : { target: call.target }),
    ...(call.aboutCallId === undefined ? {} : { about_call_id: call.aboutCallId }),
    ...(call.peer === undefined ? {} : { peer: call.peer }),
    started_at: iso(call.startedAt),
    vouching: vouchingOf(call),
  };
}

function endDetail(end: CallEnd, endedAt: Instant): Record<string, unknown> {
  const { effect } = end;
  return {
    outcome: end.outcome,
    ...(end.error === '' ? {} : { error: end.error }),
    ended_at: iso(endedAt),
    ...(effect === undefined
      ? {}
      : {
          effect: {
            ...(effect.objects.length === 0 ? {} : { objects: effect.objects }),
            ...(effect.rows === undefined ? {} : { rows: effect.rows }),
            ...(effect.externalIds.length === 0 ? {} : { external_ids: effect.externalIds }),
            ...(effect.note === '' ? {} : { note: effect.note }),
          },
        }),
  };
}

function event(call: ToolCall, kind: AuditKind, at: Instant, detail: Record<string, unknown>): AuditEvent {
  return auditEvent(call, kind, call.reportedBy, at, detail, call.leaseId);
}

export function recordedEvents(call: ToolCall): AuditEvent[] {
  const isOver = call.end !== undefined && call.endedAt !== undefined;
  const detail = { ...detailOf(call), ...(isOver ? endDetail(call.end!, call.endedAt!) : {}) };
  return [
    event(call, isOver ? 'call.recorded' : 'call.began', call.recordedAt, detail),
    ...raisedEvents(call, call.violations, call.recordedAt),
  ];
}

export function endedEvent(call: ToolCall, end: CallEnd, at: Instant): AuditEvent {
  const vouching = vouchingOf({ ...call, end, endedAt: at });
  const { outcome, effect } = vouching;
  return event(call, 'call.ended', at, {
    call_id: call.callId,
    reporter: call.reporter,
    tool: call.tool,
    tier: call.tier,
    action: call.action,
    ...endDetail(end, at),
    vouching: { outcome, ...(effect === undefined ? {} : { effect }) },
  });
}

export function raisedEvents(call: ToolCall, violations: readonly CallViolation[], at: Instant): AuditEvent[] {
  if (violations.length === 0) return [];
  const { callId, tool, tier, action, reporter } = call;
  // The broker's own conclusion, whoever wrote the record.
  const raised = event(call, 'call.raised', at, { call_id: callId, reporter, tool, tier, action, violations });
  return [{ ...raised, actor: 'broker' }];
}
