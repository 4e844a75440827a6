import type { ToolCall } from './model.ts';

export type Voucher = 'broker_attested' | 'target_attested' | 'self_reported';

export interface CallVouching {
  actor: Voucher;
  intent: Voucher;
  access: Voucher;
  lease: Voucher | undefined;
  target: Voucher | undefined;
  action: Voucher;
  arguments: Voucher | undefined;
  times: Voucher;
  outcome: Voucher | undefined;
  effect: Voucher | undefined;
  peer: Voucher | undefined;
}

/** Who vouches for each part of a record (invariant 9). It follows from the record itself, so that it cannot disagree. */
export function vouchingOf(call: ToolCall): CallVouching {
  const reporter: Voucher = call.reporter === 'tool' ? 'target_attested' : 'self_reported';
  const has = (violation: ToolCall['violations'][number]) => call.violations.includes(violation);
  const leaseKnown = call.leaseId !== undefined && !has('lease_unknown');
  // The lease is the broker's own word on tool and tier, where the reporter's agrees with it.
  const accessKnown = leaseKnown && !has('other_tool') && !has('other_tier');
  const when = <T>(part: T | undefined, voucher: Voucher) => (part === undefined ? undefined : voucher);
  return {
    actor: 'broker_attested',
    intent: 'self_reported',
    access: accessKnown ? 'broker_attested' : reporter,
    lease: when(call.leaseId, leaseKnown ? 'broker_attested' : reporter),
    target: when(call.target, leaseKnown && !has('other_tool') ? 'broker_attested' : reporter),
    action: reporter,
    arguments: when(call.argumentsDigest, reporter),
    times: call.timesStated ? reporter : 'broker_attested',
    outcome: when(call.end, reporter),
    effect: when(call.end?.effect, reporter),
    peer: when(call.peer, reporter),
  };
}
