import { formatDuration, parseDuration } from '../config/duration.ts';
import { quote } from '../config/schema.ts';
import { suggestion } from '../config/suggest.ts';
import type { FieldPath, SourceDocument } from '../config/yaml-document.ts';
import type { ArgumentLimit } from '../domain/arguments.ts';
import type { Tier } from '../domain/model.ts';
import { checkTimeZone } from './check-definitions.ts';
import type { Report } from './check-tool.ts';
import { definitionHint } from './condition-fault.ts';
import type { ArgsShape } from './condition.ts';
import { inheritTtl } from './defaults.ts';
import type { DefaultsDocument, RuleSpec, TierSpec, ToolDocument } from './documents.ts';

export interface World {
  agents: ReadonlySet<string>;
  tools: ReadonlyMap<string, ToolDocument>;
  maimedTools: ReadonlySet<string>;
  lists: Readonly<Record<string, readonly string[]>>;
  /** A document of definitions is maimed: what it defines is not known. */
  listsUnknown: boolean;
  defaults: DefaultsDocument | undefined;
}

/** A tool and tier that a rule is about. */
export interface Covered {
  tool: ToolDocument;
  tier: Tier;
  spec: TierSpec;
}

/** `lists.<name>` among agents or tools stands for the entries of the list. */
export function listName(entry: string): string | undefined {
  return entry.startsWith('lists.') ? entry.slice('lists.'.length) : undefined;
}

/** Names that agents or tools of a rule come to, each once. */
export function namesOfRule(entries: readonly string[], lists: Readonly<Record<string, readonly string[]>>): string[] {
  if (!entries.some((entry) => listName(entry) !== undefined)) return [...entries];
  const names = entries.flatMap((entry) => {
    const list = listName(entry);
    return list === undefined ? [entry] : Object.hasOwn(lists, list) ? lists[list]! : [];
  });
  return [...new Set(names)];
}

export function checkRule(
  report: Report,
  source: SourceDocument,
  path: FieldPath,
  rule: RuleSpec,
  world: World,
): Covered[] {
  for (const field of ['agents', 'tools'] as const) {
    if (rule[field].length > 1 && rule[field].includes('*')) {
      report(source, [...path, field], '"*" stands beside names that it covers already', 'keep one or the other');
    }
  }
  checkTimeZone(report, source, [...path, 'timeZone'], rule.timeZone);
  eachName(report, source, [...path, 'agents'], rule.agents, world, (name, fail) => {
    if (name === '*' || world.agents.has(name)) return;
    fail(`there is no agent ${quote(name)}`, suggestion(name, world.agents, 'agents'));
  });
  let sound = true;
  eachName(report, source, [...path, 'tools'], rule.tools, world, (name, fail) => {
    if (name === '*' || world.maimedTools.has(name)) return;
    const tool = world.tools.get(name);
    if (tool === undefined) {
      sound = false;
      fail(`there is no tool ${quote(name)}`, suggestion(name, world.tools.keys(), 'tools'));
    } else if (!rule.tiers.some((tier) => tool.spec.tiers[tier] !== undefined)) {
      const has = Object.keys(tool.spec.tiers).join(', ');
      fail(`tool ${quote(name)} has none of the rule's tiers`, `it has ${has}`);
    }
  });
  const names = namesOfRule(rule.tools, world.lists);
  const tools = names.includes('*') ? [...world.tools.values()] : names.flatMap((name) => world.tools.get(name) ?? []);
  const isWhole = sound && !names.some((name) => world.maimedTools.has(name)) && !world.listsUnknown;
  rule.tiers.forEach((tier, index) => {
    // A tool with none of the tiers has been reported above.
    if (!isWhole || !tools.some((tool) => rule.tiers.some((one) => tool.spec.tiers[one] !== undefined))) return;
    if (tools.some((tool) => tool.spec.tiers[tier] !== undefined)) return;
    report(source, [...path, 'tiers', index], `none of the rule's tools has a tier ${tier}`, 'remove it');
  });
  const covered = tools.flatMap((tool) =>
    rule.tiers.flatMap((tier) => {
      const spec = tool.spec.tiers[tier];
      return spec === undefined ? [] : [{ tool, tier, spec }];
    }),
  );
  checkObligations(report, source, path, rule, covered, world);
  return covered;
}

function eachName(
  report: Report,
  source: SourceDocument,
  path: FieldPath,
  entries: readonly string[],
  world: World,
  check: (name: string, fail: (message: string, hint: string) => void) => void,
): void {
  entries.forEach((entry, index) => {
    const at = [...path, index];
    const list = listName(entry);
    if (list === undefined) {
      check(entry, (message, hint) => report(source, at, message, hint));
    } else if (!Object.hasOwn(world.lists, list)) {
      if (!world.listsUnknown) {
        report(source, at, `there is no list ${quote(list)}`, definitionHint(list, Object.keys(world.lists), 'lists'));
      }
    } else {
      for (const name of world.lists[list]!) {
        check(name, (message, hint) => report(source, at, `in list ${quote(list)}: ${message}`, hint));
      }
    }
  });
}

function checkObligations(
  report: Report,
  source: SourceDocument,
  path: FieldPath,
  rule: RuleSpec,
  covered: readonly Covered[],
  world: World,
): void {
  const at = [...path, 'obligations'];
  if (rule.effect === 'deny' && rule.reason === undefined) {
    report(source, path, '"reason" is missing', 'a rule that denies says why, and what to do instead');
  }
  const { approval, ...others } = rule.obligations ?? {};
  if (rule.effect === 'deny' && Object.keys(others).length > 0) {
    report(source, at, `has no effect with ${rule.effect}`, 'put it on the rule that allows');
  }
  const asks = rule.effect === 'require_approval' || others.renewal?.approvalAfter !== undefined;
  if (!asks && approval !== undefined) {
    report(
      source,
      [...at, 'approval'],
      `has no effect with ${rule.effect}`,
      'put it on a rule with effect require_approval',
    );
  }
  for (const [name, limit] of Object.entries(others.arguments ?? {})) {
    checkArgumentLimit(report, source, [...at, 'arguments', name], name, limit, covered);
  }
  const bounded = covered.flatMap(({ tool, tier, spec }) => {
    const { ttl } = inheritTtl(world.defaults, tool, spec);
    return ttl.min === undefined || ttl.max === undefined
      ? []
      : [{ name: `${tool.metadata.name}:${tier}`, min: ttl.min.millis, max: ttl.max.millis }];
  });
  const ttl = parseDuration(others.ttl ?? '');
  // Lengthening a life to the tier's minimum would give more than the rule says; so it is a mistake to be mended here.
  const shorter = ttl === undefined ? [] : bounded.filter(({ min }) => ttl < min);
  if (shorter.length > 0) {
    const which = shorter.slice(0, 3).map(({ name, min }) => `${name} (${formatDuration(min)})`);
    const hint = 'raise it, or leave that tool or tier out of the rule';
    report(source, [...at, 'ttl'], `is shorter than the minimum of ${which.join(', ')}`, hint);
  }
  const notBefore = parseDuration(others.renewal?.notBefore ?? '');
  if (notBefore === undefined) return;
  // Nothing would ever be renewed: the credential is dead before it may be.
  const late = bounded.find(({ max }) => notBefore >= Math.min(max, ttl ?? Infinity));
  if (late !== undefined) {
    const life = formatDuration(Math.min(late.max, ttl ?? Infinity));
    report(
      source,
      [...at, 'renewal', 'notBefore'],
      `is no earlier than the end of a credential of ${late.name} (${life})`,
      'a credential is renewed while it lives; for none at all say max: 0',
    );
  }
}

function checkArgumentLimit(
  report: Report,
  source: SourceDocument,
  path: FieldPath,
  name: string,
  limit: ArgumentLimit,
  covered: readonly Covered[],
): void {
  const declared = covered.flatMap(({ spec }) => {
    const one = spec.arguments?.[name];
    return one === undefined ? [] : [one];
  });
  if (declared.length === 0) {
    const names = new Set(covered.flatMap(({ spec }) => Object.keys(spec.arguments ?? {})));
    const hint = names.size === 0 ? 'its tools declare no arguments' : suggestion(name, names, 'arguments');
    report(source, path, `none of the rule's tools takes an argument ${quote(name)}`, hint);
    return;
  }
  // Where some of the tools do not take the argument, the limit would bind nothing there and look as if it did.
  const without = covered.find(({ spec }) => spec.arguments?.[name] === undefined);
  if (without !== undefined) {
    report(
      source,
      path,
      `${without.tool.metadata.name}:${without.tier} takes no argument ${quote(name)}`,
      'leave that tool or tier out of the rule, or declare the argument there',
    );
  }
  for (const { type } of declared) {
    const isText = type === 'string';
    const isNumber = type === 'integer' || type === 'number';
    for (const field of ['minimum', 'maximum', 'maxLength'] as const) {
      const fits = field === 'maxLength' ? isText : isNumber;
      if (limit[field] !== undefined && !fits) {
        report(source, [...path, field], `has no meaning for type ${type}`, 'remove it');
        return;
      }
    }
    const wrong = (limit.enum ?? []).findIndex((value) =>
      isText ? typeof value !== 'string' : typeof value !== 'number',
    );
    if (wrong >= 0) {
      report(
        source,
        [...path, 'enum', wrong],
        `is not of type ${type}`,
        isText ? 'put it in quotes' : 'write a number, without quotes',
      );
      return;
    }
  }
  if (limit.minimum !== undefined && limit.maximum !== undefined && limit.minimum > limit.maximum) {
    const message = `is greater than maximum (${limit.minimum} > ${limit.maximum})`;
    report(source, [...path, 'minimum'], message, 'no number would fit');
  }
}

const celTypes = { string: 'string', integer: 'int', number: 'double', boolean: 'bool' } as const;

/** Types of `args` in a rule's conditions: where its tools do not agree, the type is known only when it runs. */
export function shapeOf(covered: readonly Covered[]): ArgsShape {
  const shape: Record<string, string> = {};
  for (const { spec } of covered) {
    for (const [name, { type }] of Object.entries(spec.arguments ?? {})) {
      const mine = celTypes[type];
      shape[name] = !Object.hasOwn(shape, name) || shape[name] === mine ? mine : 'dyn';
    }
  }
  return Object.fromEntries(Object.entries(shape).sort(([a], [b]) => (a < b ? -1 : 1)));
}
