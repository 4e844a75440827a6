import { parseDuration } from '../config/duration.ts';
import type { ApprovalTerms, Quorum } from '../domain/policy.ts';
import type { Millis } from '../domain/time.ts';
import type { ApprovalSpec } from './documents.ts';

/** One rule's `approval` obligation, with its defaults. */
export interface RuleApproval {
  quorum: Quorum;
  uses: number;
  decideWithin: Millis;
  validFor: Millis;
  coolDown: Millis;
}

export function approvalOf(rule: string, spec: ApprovalSpec = {}): RuleApproval {
  return {
    quorum: Object.freeze({ rule, approvers: Object.freeze([...(spec.approvers ?? [])]), count: spec.count ?? 1 }),
    uses: spec.uses ?? 1,
    decideWithin: parseDuration(spec.expires ?? '5m')!,
    validFor: parseDuration(spec.validFor ?? '15m')!,
    coolDown: parseDuration(spec.coolDown ?? '1m')!,
  };
}

/** Every rule's own people have to agree; whatever else is limited, the least holds (the longest cool-down). */
export function mergeApprovals(asking: readonly RuleApproval[], ttl: Millis): ApprovalTerms {
  const least = (of: (one: RuleApproval) => number) => Math.min(...asking.map(of));
  return {
    quorums: asking.map(({ quorum }) => quorum),
    uses: least(({ uses }) => uses),
    decideWithin: least(({ decideWithin }) => decideWithin),
    validFor: least(({ validFor }) => validFor),
    coolDown: Math.max(...asking.map(({ coolDown }) => coolDown)),
    ttl,
  };
}
