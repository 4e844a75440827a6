import { noneEarlier, nothingYet } from '../domain/facts.ts';
import type { Decision, DecisionInput, Effect, Obligations, OpenDecision } from '../domain/policy.ts';
import type { Open, Prospect } from './condition-forecast.ts';
import { about, granted, noMatch, seer } from './decide.ts';
import type { RuleIndex, Subject, World } from './decide.ts';
import { least, mergeObligations, refusal } from './obligations.ts';
import type { CompiledRule } from './obligations.ts';
import { looksAtEarlier } from './renewal.ts';

interface Foreseen {
  rule: CompiledRule;
  prospect: Prospect;
}

const always: Prospect = { true: true, false: false, fails: false, names: new Set() };
const maxNames = 16;
const toldRules = 4;

/**
 * What rules say while something of a request is not known: `input` may lack arguments, workload and facts. An answer that
 * holds for every request, or what it depends on and all that it can still come to. Deny wins, as in `decideByRules`.
 */
export function forecastByRules(
  index: RuleIndex,
  world: World,
  subject: Subject,
  input: DecisionInput,
): Decision | OpenDecision {
  const open: Open = {
    arguments: input.arguments === undefined ? (subject.tier.arguments ?? {}) : undefined,
    caller: input.workload === undefined,
    held: input.facts?.held === undefined,
    called: input.facts?.called === undefined,
    lineage: input.task.parentTaskId !== undefined && input.facts?.lineage === undefined,
    signals: input.facts?.signals === undefined,
    knownRates: input.facts?.rates ?? new Set<string>(),
  };
  const see = seer(world, subject, input);
  const foreseen = about(index, input.task.agent, input.access)
    .flat()
    .filter((rule) => rule.tiers.has(input.access.tier))
    .map((rule): Foreseen => {
      const { condition } = rule;
      return { rule, prospect: condition?.forecast(see(rule.timeZone), open) ?? always };
    })
    .sort((a, b) => a.rule.order - b.rule.order);

  const denying = foreseen.find(certainlyDenies);
  if (denying !== undefined) {
    const { reason, id } = denying.rule;
    const why = reason ?? `rule ${id} applies`;
    const { fails } = denying.prospect;
    if (denying.prospect.true || fails === false) return refusal(id, why);
    return refusal(id, `${why} (denied because a condition could not be evaluated: ${fails.failed})`);
  }
  const mayApply = foreseen.filter(({ prospect }) => prospect.true);
  const applies = mayApply.filter(({ prospect }) => !prospect.false && prospect.fails === false);
  const sure = applies.map(({ rule }) => rule).filter(({ effect }) => effect !== 'deny');
  const perhaps = mayApply.map(({ rule }) => rule).filter(({ effect }) => effect !== 'deny');
  // Nothing could let it through, whatever is asked: as decided, with the reason of a near miss.
  if (perhaps.length === 0) {
    const missed = foreseen.find(({ rule }) => rule.effect === 'allow');
    const fails = missed?.prospect.fails;
    return noMatch(input, missed?.rule, fails ? fails.failed : undefined);
  }

  const names = new Set<string>();
  const possible = new Set<Effect>();
  const name = (some: Iterable<string>) => {
    for (const one of some) names.add(one);
  };

  if (sure.length === 0) {
    for (const { prospect, rule } of mayApply) if (rule.effect !== 'deny') name(prospect.names);
    possible.add('deny');
  }
  const asks = sure.some(({ effect }) => effect === 'require_approval');
  const mayAsk = perhaps.some(({ effect }) => effect === 'require_approval');
  if (asks || mayAsk) possible.add('needs_approval');
  if (!asks) possible.add('allow');
  if (mayAsk && !asks) nameOf(foreseen, 'require_approval', name);
  for (const { rule, prospect } of foreseen) {
    const stops = (rule.effect === 'deny' && (prospect.true || prospect.fails !== false)) || mayStop(rule, prospect);
    if (!stops) continue;
    possible.add('deny');
    name(prospect.names);
  }
  const limited = new Set(perhaps.flatMap(({ argumentLimits = {} }) => Object.keys(argumentLimits)));
  // Known arguments are held against the limits as in a decision, below.
  if (limited.size > 0 && open.arguments !== undefined) {
    possible.add('deny');
    name([...limited].map((argument) => `args.${argument}`));
  }
  const age = input.now - input.task.openedAt;
  // Of a task that is only about to be, it is known that it has had nothing.
  const isEarlierOpen = input.facts !== undefined && input.facts.earlier === undefined;
  if (
    (open.held && perhaps.some(({ maxUses }) => maxUses !== undefined)) ||
    (isEarlierOpen && perhaps.some((rule) => looksAtEarlier(rule, age)))
  ) {
    possible.add('deny');
    name(['count']);
  }

  // What is certain has to hold together by itself; what may come on top can only make it stricter.
  const facts = {
    ...(input.facts ?? nothingYet),
    held: input.facts?.held ?? [],
    earlier: input.facts?.earlier ?? noneEarlier,
  };
  const counted = { ...input, facts };
  const merged = mergeObligations(sure, counted);
  if ('effect' in merged) return merged;
  const all = mergeObligations(perhaps, counted);
  if ('effect' in all) {
    possible.add('deny');
    for (const { prospect, rule } of mayApply) if (rule.effect !== 'deny') name(prospect.names);
  }
  const { senderConstraint } = 'effect' in all ? merged : all;
  const obligations: Obligations = { ...merged, ...(senderConstraint === undefined ? {} : { senderConstraint }) };

  if (possible.size === 1 || names.size === 0) {
    const [approvals, allows] = [true, false].map((isAsking) =>
      sure.filter(({ effect }) => (effect === 'require_approval') === isAsking),
    );
    return cautious(granted(subject, counted, allows!, approvals!, see), subject, perhaps, obligations);
  }
  const longest = Math.min(
    least(sure, (rule) => rule.ttl)?.ttl ??
      Math.max(subject.tier.ttl.default, ...perhaps.map(({ ttl }) => ttl ?? subject.tier.ttl.default)),
    subject.tier.ttl.max,
  );
  const dependsOn = [...names].sort();
  return {
    effect: 'depends',
    rule: '',
    reason: told(dependsOn, foreseen),
    dependsOn: dependsOn.slice(0, maxNames),
    possible: (['allow', 'needs_approval', 'deny'] as const).filter((effect) => possible.has(effect)),
    ttl: longest,
    ...(Object.keys(obligations).length === 0 ? {} : { obligations }),
  };
}

/** It comes out one way whatever is asked; its life is the least of all that may be said about it. */
function cautious(
  decided: Decision,
  subject: Subject,
  perhaps: readonly CompiledRule[],
  obligations: Obligations,
): Decision {
  const shortest = least(perhaps, (rule) => rule.ttl)?.ttl ?? subject.tier.ttl.default;
  const bound = <T extends number | undefined>(ttl: T) => (ttl === undefined ? ttl : Math.min(ttl, shortest));
  return {
    ...decided,
    ttl: bound(decided.ttl),
    ...(decided.approval === undefined ? {} : { approval: { ...decided.approval, ttl: bound(decided.approval.ttl) } }),
    ...(Object.keys(obligations).length === 0 ? {} : { obligations }),
  };
}

function certainlyDenies({ rule, prospect }: Foreseen): boolean {
  if (rule.effect === 'deny') return !prospect.false;
  return rule.effect === 'require_approval' && !prospect.true && !prospect.false;
}

/** Fail closed: a rule that asks for approval and cannot be evaluated denies. */
function mayStop(rule: CompiledRule, prospect: Prospect): boolean {
  return rule.effect === 'require_approval' && prospect.fails !== false;
}

function nameOf(
  foreseen: readonly Foreseen[],
  effect: CompiledRule['effect'],
  name: (names: Iterable<string>) => void,
): void {
  for (const { rule, prospect } of foreseen) if (rule.effect === effect) name(prospect.names);
}

const may = { allow: 'may allow it', require_approval: 'may ask for approval', deny: 'may deny it' } as const;
const does = { allow: 'allows it', require_approval: 'asks for approval', deny: 'denies it' } as const;

function told(dependsOn: readonly string[], foreseen: readonly Foreseen[]): string {
  const about = foreseen.filter(({ prospect }) => prospect.true || prospect.names.size > 0);
  const rules = about.slice(0, toldRules).map(({ rule, prospect }) => {
    const { argumentLimits = {} } = rule;
    const limits = Object.keys(argumentLimits).map((argument) => `args.${argument}`);
    const within = limits.length === 0 || rule.effect === 'deny' ? '' : ` within limits on ${limits.join(', ')}`;
    return `rule ${rule.id} ${(prospect.names.size > 0 ? may : does)[rule.effect]}${within}`;
  });
  const more = about.length > toldRules ? `, and ${about.length - toldRules} more` : '';
  const names = dependsOn.length > maxNames ? [...dependsOn.slice(0, maxNames), '…'] : dependsOn;
  return `it depends on ${names.join(', ')}: ${rules.join(', ')}${more}`;
}
