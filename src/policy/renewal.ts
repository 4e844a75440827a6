import { formatDuration } from '../config/duration.ts';
import type { Decision, DecisionInput, RenewalContext } from '../domain/policy.ts';
import type { Millis } from '../domain/time.ts';
import type { Activation } from './activation.ts';
import { least, refusal } from './obligations.ts';
import type { CompiledRule } from './obligations.ts';

/**
 * Whether a rule has to know what the task has had. A task that is younger than a limit cannot have had anything for
 * longer, so that only old tasks are looked up; and nothing is renewed with `max: 0`, whose uses `maxUses` counts.
 */
export function looksAtEarlier({ renewal }: CompiledRule, taskAge: Millis): boolean {
  if (!renewal.ofTask) return false;
  return (renewal.max ?? 0) > 0 || (renewal.maxAge !== undefined && taskAge >= renewal.maxAge);
}

/**
 * Why policy does not let a task have another credential of a tool and tier, whether it renews one or begins a line anew:
 * limits on renewal hold for all lines together, or an agent would get around them by asking anew.
 */
export function furtherRefusal(
  rules: readonly CompiledRule[],
  { access, facts, now, renewal, task }: DecisionInput,
): Decision | undefined {
  const name = `${access.tool}:${access.tier}`;
  const looking = rules.filter((rule) => looksAtEarlier(rule, now - task.openedAt));
  if (looking.length === 0) return undefined;
  const earlier = facts?.earlier;
  if (earlier === undefined) {
    const { id } = least(looking, (rule) => rule.order)!;
    return refusal(id, `rule ${id} bounds what a task gets of ${name}, and how much that was is not known`);
  }
  const count = least(looking, ({ renewal: { max = 0 } }) => (max > 0 ? max : undefined));
  if (count !== undefined && earlier.credentials > count.renewal.max!) {
    const times = count.renewal.max === 1 ? 'once' : `${count.renewal.max} times`;
    return refusal(
      count.id,
      renewal === undefined
        ? `rule ${count.id} lets a task have ${name} and renew it ${times}, in all its lines together, which has been used`
        : `rule ${count.id} allows renewal at most ${times} in one task, which have been used`,
    );
  }
  const age = least(looking, (rule) => rule.renewal.maxAge);
  if (age === undefined || earlier.since === undefined || now - earlier.since < age.renewal.maxAge!) return undefined;
  return refusal(
    age.id,
    `rule ${age.id} lets a task have ${name} until ${formatDuration(age.renewal.maxAge!)} after the first issue, which is over`,
  );
}

/** Why policy does not let this line go on now; undefined when it does. Every rule that grants has its say. */
export function renewalRefusal(
  rules: readonly CompiledRule[],
  renewal: RenewalContext,
  see: (timeZone: string | undefined) => Activation,
): Decision | undefined {
  const count = least(rules, (rule) => rule.renewal.max);
  if (count !== undefined && renewal.count >= count.renewal.max!) {
    const times = count.renewal.max === 1 ? 'once' : `${count.renewal.max} times`;
    return refusal(
      count.id,
      count.renewal.max === 0
        ? `rule ${count.id} allows no renewal`
        : `rule ${count.id} allows renewal at most ${times}, which have been used`,
    );
  }
  const age = least(rules, (rule) => rule.renewal.maxAge);
  if (age !== undefined && renewal.age >= age.renewal.maxAge!) {
    return refusal(
      age.id,
      `rule ${age.id} allows renewal until ${formatDuration(age.renewal.maxAge!)} after the first issue, which is over`,
    );
  }
  const sorted = rules.toSorted((a, b) => a.order - b.order);
  const heartless = renewal.heartbeat ? undefined : sorted.find((rule) => rule.renewal.requireHeartbeat);
  if (heartless !== undefined) {
    return refusal(
      heartless.id,
      `rule ${heartless.id} renews only for a task that sends heartbeats: open it with heartbeat_interval, and keep it`,
    );
  }
  for (const rule of sorted) {
    const holds = rule.renewal.condition?.evaluate(see(rule.timeZone)) ?? true;
    if (holds === true) continue;
    const why = holds === false ? 'does not hold' : `could not be evaluated: ${holds.failed}`;
    return refusal(rule.id, `the renewal condition of rule ${rule.id} ${why}`);
  }
  // Last: waiting does not mend any of the others.
  const early = least(rules, (rule) => (rule.renewal.notBefore === undefined ? undefined : -rule.renewal.notBefore));
  if (early === undefined || renewal.sinceIssue >= early.renewal.notBefore!) return undefined;
  const wait = formatDuration(early.renewal.notBefore! - renewal.sinceIssue);
  return refusal(
    early.id,
    `rule ${early.id} renews a credential once it is ${formatDuration(early.renewal.notBefore!)} old: ask again in ${wait}`,
  );
}

/** The rule that wants people asked again, and why. */
export function needsApprovalAgain(
  rules: readonly CompiledRule[],
  renewal: RenewalContext,
): { rule: CompiledRule; reason: string } | undefined {
  const since = renewal.sinceApproval ?? renewal;
  const from = renewal.sinceApproval === undefined ? 'since the first credential' : 'since the last approval';
  const count = least(rules, (rule) => rule.renewal.approvalAfterCount);
  if (count !== undefined && since.count >= count.renewal.approvalAfterCount!) {
    const reason = `rule ${count.id} asks for approval again after ${count.renewal.approvalAfterCount} renewals ${from}`;
    return { rule: count, reason };
  }
  const age = least(rules, (rule) => rule.renewal.approvalAfterAge);
  if (age === undefined || since.age < age.renewal.approvalAfterAge!) return undefined;
  const reason = `rule ${age.id} asks for approval again ${formatDuration(age.renewal.approvalAfterAge!)} ${from}`;
  return { rule: age, reason };
}
