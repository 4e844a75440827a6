import { limitFault, narrower } from '../domain/arguments.ts';
import type { ArgumentLimit, ArgumentLimits } from '../domain/arguments.ts';
import type { Tier } from '../domain/model.ts';
import type { Decision, DecisionInput, Obligations, SenderConstraint } from '../domain/policy.ts';
import type { Millis } from '../domain/time.ts';
import type { RuleApproval } from './approval.ts';
import type { Condition } from './condition.ts';
import type { RuleSpec } from './documents.ts';

/** A rule ready to be asked. `order` is its place by policy and name: what is reported does not hang on files. */
export interface CompiledRule {
  id: string;
  order: number;
  tiers: ReadonlySet<Tier>;
  effect: RuleSpec['effect'];
  condition: Condition | undefined;
  timeZone: string | undefined;
  reason: string | undefined;
  ttl: Millis | undefined;
  maxUses: number | undefined;
  renewal: RuleRenewal;
  senderConstraint: SenderConstraint | undefined;
  argumentLimits: ArgumentLimits | undefined;
  /** Its own with effect `require_approval`; the defaults for a renewal that needs one. */
  approval: RuleApproval;
}

export interface RuleRenewal {
  /** `max` and `maxAge` hold for all lines of a task together. */
  ofTask: boolean;
  max: number | undefined;
  maxAge: Millis | undefined;
  notBefore: Millis | undefined;
  condition: Condition | undefined;
  requireHeartbeat: boolean;
  approvalAfterCount: number | undefined;
  approvalAfterAge: Millis | undefined;
}

/**
 * Obligations of all rules that allow or ask, merged to the strictest; or a refusal, when the request does not keep to
 * them or nothing could.
 */
export function mergeObligations(rules: readonly CompiledRule[], input: DecisionInput): Obligations | Decision {
  const obligations: Obligations = {};
  const uses = least(rules, (rule) => rule.maxUses);
  if (uses !== undefined && input.renewal === undefined) {
    const refused = usesRefusal(uses, input);
    if (refused !== undefined) return refused;
  }

  const constrained = rules.filter((rule) => rule.senderConstraint !== undefined).sort((a, b) => a.order - b.order);
  const [one] = constrained;
  const other = constrained.find((rule) => rule.senderConstraint !== one!.senderConstraint);
  if (one !== undefined && other !== undefined) {
    const both = `${one.senderConstraint} (${one.id}) and ${other.senderConstraint} (${other.id})`;
    return refusal(one.id, `the credential would have to be bound by ${both}, and no credential is bound by both`);
  }
  if (one !== undefined) obligations.senderConstraint = one.senderConstraint!;

  const notBefore = rules.reduce((most, rule) => Math.max(most, rule.renewal.notBefore ?? 0), 0);
  if (notBefore > 0) obligations.renewNotBefore = notBefore;

  const limited = rules.filter((rule) => rule.argumentLimits !== undefined).sort((a, b) => a.order - b.order);
  if (limited.length === 0) return obligations;
  const limits: Record<string, ArgumentLimit> = {};
  for (const rule of limited) {
    for (const [name, limit] of Object.entries(rule.argumentLimits!)) {
      const value =
        input.arguments !== undefined && Object.hasOwn(input.arguments, name) ? input.arguments[name] : undefined;
      const fault = value === undefined ? undefined : limitFault(limit, value);
      if (fault !== undefined) return refusal(rule.id, `rule ${rule.id} limits arguments.${name}: it ${fault}`);
      limits[name] = Object.hasOwn(limits, name) ? narrower(limits[name]!, limit) : limit;
    }
  }
  const impossible = Object.entries(limits).find(([, limit]) => nothingFits(limit));
  if (impossible !== undefined) {
    const which = limited.filter((rule) => Object.hasOwn(rule.argumentLimits!, impossible[0])).map(({ id }) => id);
    return refusal(which[0]!, `no value of arguments.${impossible[0]} fits the limits of ${which.join(' and ')}`);
  }
  obligations.argumentLimits = limits;
  return obligations;
}

function nothingFits({ enum: values, minimum = -Infinity, maximum = Infinity }: ArgumentLimit): boolean {
  return values?.length === 0 || minimum > maximum;
}

function usesRefusal(rule: CompiledRule, { access, facts }: DecisionInput): Decision | undefined {
  if (facts?.held === undefined) {
    return refusal(rule.id, `rule ${rule.id} counts credentials, and how many there were is not known`);
  }
  const used = facts.held
    .filter(({ tool, tier }) => tool === access.tool && tier === access.tier)
    .reduce((sum, { count }) => sum + count, 0);
  if (used < rule.maxUses!) return undefined;
  const times = rule.maxUses === 1 ? 'once' : `${rule.maxUses} times`;
  return refusal(
    rule.id,
    `rule ${rule.id} allows ${access.tool}:${access.tier} ${times} in one task, which have been used`,
  );
}

/** The rule whose value is least; of equals the first by name, so that the same rule is told whatever the order. */
export function least(
  rules: readonly CompiledRule[],
  of: (rule: CompiledRule) => number | undefined,
): CompiledRule | undefined {
  let best: CompiledRule | undefined;
  for (const rule of rules) {
    const value = of(rule);
    if (value === undefined) continue;
    const bestValue = best === undefined ? Infinity : of(best)!;
    if (value < bestValue || (value === bestValue && rule.order < best!.order)) best = rule;
  }
  return best;
}

export function refusal(rule: string, reason: string): Decision {
  return { effect: 'deny', rule, reason, ttl: undefined };
}
