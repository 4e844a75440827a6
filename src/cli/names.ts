import type { Tier as TierName } from '../domain/model.ts';
import {
  CloseCause,
  Effect,
  LeaseOutcome,
  LeaseState,
  RevocationKind,
  SenderConstraint,
  TaskState,
  Tier,
  type Lease,
} from '../gen/leasehold/v1/common_pb.js';
import { TimelineStep } from '../gen/leasehold/v1/audit_service_pb.js';
import {
  ToolCallOutcome,
  ToolCallState,
  ToolCallViolation,
  Voucher,
} from '../gen/leasehold/v1/tool_call_service_pb.js';
import type { Tone } from './output.ts';

/** `close_degraded` for CLOSE_DEGRADED: people read and type enum names in lower case. Unspecified is empty. */
function lower(names: Record<number, string>): (value: number) => string {
  return (value) => (value === 0 ? '' : (names[value]?.toLowerCase() ?? `unknown(${value})`));
}

export const tierName = lower(Tier);
export const effectName = lower(Effect);
export const taskStateName = lower(TaskState);
export const leaseStateName = lower(LeaseState);
export const outcomeName = lower(LeaseOutcome);
export const revocationName = lower(RevocationKind);
export const senderConstraintName = lower(SenderConstraint);
export const closeCauseName = lower(CloseCause);
export const stepName = lower(TimelineStep);
export const callStateName = lower(ToolCallState);
export const callOutcomeName = lower(ToolCallOutcome);
export const violationName = lower(ToolCallViolation);

export const tierValue: Record<TierName, Tier> = { read: Tier.READ, write: Tier.WRITE, execute: Tier.EXECUTE };

export const constraintValue = {
  none: SenderConstraint.UNSPECIFIED,
  dpop: SenderConstraint.DPOP,
  mtls: SenderConstraint.MTLS,
} as const;

export function effectTone(effect: Effect): Tone {
  return effect === Effect.ALLOW ? 'good' : effect === Effect.DENY ? 'bad' : 'warn';
}

export function taskTone(state: TaskState): Tone | undefined {
  if (state === TaskState.OPEN) return 'good';
  if (state === TaskState.CLOSE_DEGRADED) return 'bad';
  return state === TaskState.CLOSING ? 'warn' : undefined;
}

export function leaseTone(lease: Lease): Tone | undefined {
  if (lease.outcome === LeaseOutcome.IRREVOCABLE) return 'bad';
  if (lease.state === LeaseState.ACTIVE) return 'good';
  return lease.state === LeaseState.SETTLED ? undefined : 'warn';
}

export const callOutcomes = {
  succeeded: ToolCallOutcome.SUCCEEDED,
  failed: ToolCallOutcome.FAILED,
  refused: ToolCallOutcome.REFUSED,
  unknown: ToolCallOutcome.UNKNOWN,
} as const;

/** Who vouches, as an auditor says it. */
export function voucherName(voucher: Voucher): string {
  return (
    { [Voucher.BROKER_ATTESTED]: 'broker', [Voucher.TARGET_ATTESTED]: 'tool', [Voucher.SELF_REPORTED]: 'self' }[
      voucher as number
    ] ?? ''
  );
}
