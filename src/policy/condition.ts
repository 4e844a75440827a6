import { Environment } from '@marcbachmann/cel-js';
import type { ParseError } from '@marcbachmann/cel-js';
import { suggestion } from '../config/suggest.ts';
import type { FactNeeds } from '../domain/facts.ts';
import { subjectKinds } from '../domain/signals/model.ts';
import type { Millis } from '../domain/time.ts';
import {
  ArgsView,
  HeldItem,
  calledItemFields,
  heldItemFields,
  ListsView,
  CalledItem,
  SignalItem,
  signalItemFields,
  UnknownFact,
  variables,
} from './activation.ts';
import type {
  Activation,
  CalledView,
  CountView,
  HeldView,
  RateView,
  SignalsView,
  TimeView,
  ToolView,
} from './activation.ts';
import { parseDuration } from '../config/duration.ts';
import { unknownField } from './condition-fault.ts';
import type { ConditionFault } from './condition-fault.ts';
import { expandConditions, expressionOf } from './expand.ts';
import type { Expansion } from './expand.ts';
import { forecaster } from './condition-forecast.ts';
import type { ConditionResult, ForecastCondition } from './condition-forecast.ts';
import { checkExpression } from './expression-check.ts';
import { needsOf, watchesOf } from './expression-needs.ts';

export interface Condition {
  evaluate(activation: Activation): ConditionResult;
  /** What storage has to be asked before it can be evaluated; undefined when nothing. */
  needs: FactNeeds | undefined;
  /** All that it can come to while the request is not made. */
  forecast: ForecastCondition;
  /** Whether a signal can change what it comes to. */
  watches: boolean;
  source: string;
}

/** Types of `args` by name, as far as the tools that a rule is about agree on them. */
export type ArgsShape = Readonly<Record<string, string>>;

/** What conditions may name beside the variables that are always there. */
export interface Vocabulary {
  conditions: ReadonlyMap<string, string>;
  lists: Readonly<Record<string, readonly string[]>>;
  /** Undefined when the configuration is not known: any name will do. */
  environment: Readonly<Record<string, string>> | undefined;
}

export type CompileCondition = (
  source: string,
  shape: ArgsShape,
) => { condition: Condition } | { fault: ConditionFault };

// Far above what a person can read, and low enough that no expression is slow.
const limits = { maxAstNodes: 500, maxDepth: 32, maxListElements: 256, maxMapEntries: 64, maxCallArguments: 8 };

const variableNames = [...Object.keys(variables), 'tier', 'args', 'environment', 'conditions', 'lists'];

/** A compiler for one set of documents. Types of `args` differ from tool to tool, so each shape has an environment. */
export function createConditionCompiler(vocabulary: Vocabulary): CompileCondition {
  const base = baseEnvironment(vocabulary);
  const environments = new Map<string, Environment>();
  const compiled = new Map<string, ReturnType<CompileCondition>>();

  const environmentFor = (shape: ArgsShape, key: string) => {
    let environment = environments.get(key);
    if (environment === undefined) {
      environment = base.clone();
      environment.registerType(ArgsView.name, { ctor: ArgsView, fields: { ...shape } });
      environment.registerVariable('args', ArgsView.name);
      environments.set(key, environment);
    }
    return environment;
  };

  return (source, shape) => {
    const shapeKey = JSON.stringify(shape);
    // Most conditions do not look at arguments, and are the same condition whatever tools their rule is about.
    const key = source.includes('args') || source.includes('conditions') ? `${shapeKey} ${source}` : source;
    let result = compiled.get(key);
    if (result === undefined) {
      const environment = environmentFor(shape, shapeKey);
      result = compile(environment, vocabulary, shape, source);
      compiled.set(key, result);
    }
    return result;
  };
}

function baseEnvironment(vocabulary: Vocabulary): Environment {
  const environment = new Environment({ limits });
  environment.registerType(HeldItem.name, { ctor: HeldItem, fields: { ...heldItemFields } });
  environment.registerType(CalledItem.name, { ctor: CalledItem, fields: { ...calledItemFields } });
  environment.registerType(SignalItem.name, { ctor: SignalItem, fields: { ...signalItemFields } });
  for (const [name, { ctor, fields }] of Object.entries(variables)) {
    environment.registerType(ctor.name, { ctor, fields: { ...fields } });
    environment.registerVariable(name, ctor.name);
  }
  const lists = Object.fromEntries(Object.keys(vocabulary.lists).map((name) => [name, 'list<string>']));
  environment.registerType(ListsView.name, { ctor: ListsView, fields: lists });
  environment.registerVariable('lists', ListsView.name);
  environment.registerVariable('tier', 'string');
  environment.registerVariable('environment', 'map<string, string>');

  const method = (
    receiverType: string,
    name: string,
    types: readonly string[],
    returnType: string,
    handler: (...args: never[]) => unknown,
  ) =>
    environment.registerFunction({
      name,
      receiverType,
      returnType,
      params: types.map((type, index) => ({ name: `p${index}`, type })),
      handler,
    });
  method('TimeView', 'zone', ['string'], 'TimeView', (time: TimeView, zone: string) => time.zone(zone));
  method('HeldView', 'tool', ['string'], 'bool', (held: HeldView, tool: string) => held.tool(tool));
  method('HeldView', 'access', ['string', 'string'], 'bool', (held: HeldView, tool: string, tier: string) =>
    held.access(tool, tier),
  );
  method('HeldView', 'label', ['string', 'string'], 'bool', (held: HeldView, name: string, value: string) =>
    held.label(name, value),
  );
  method('CalledView', 'tool', ['string'], 'bool', (called: CalledView, tool: string) => called.tool(tool));
  method('CalledView', 'access', ['string', 'string'], 'bool', (called: CalledView, tool: string, tier: string) =>
    called.access(tool, tier),
  );
  method('CalledView', 'attested', ['string', 'string'], 'bool', (called: CalledView, tool: string, tier: string) =>
    called.attested(tool, tier),
  );
  method('CalledView', 'label', ['string', 'string'], 'bool', (called: CalledView, name: string, value: string) =>
    called.label(name, value),
  );
  method('CountView', 'task', [], 'int', (count: CountView) => count.task(undefined));
  method('CountView', 'task', ['string'], 'int', (count: CountView, tool: string) => count.task(tool));
  method('CountView', 'task', ['ToolView'], 'int', (count: CountView, tool: ToolView) => count.task(tool.name));
  method('SignalsView', 'any', ['string'], 'bool', (signals: SignalsView, kind: string) =>
    signals.has(kind, undefined),
  );
  method('SignalsView', 'value', ['string'], 'int', (signals: SignalsView, kind: string) =>
    signals.value(kind, undefined),
  );
  for (const subject of subjectKinds) {
    method('SignalsView', subject, ['string'], 'bool', (signals: SignalsView, kind: string) =>
      signals.has(kind, subject),
    );
  }
  for (const scope of ['task', 'agent', 'tool'] as const) {
    method('RateView', scope, ['string'], 'int', (rate: RateView, window: string) =>
      rate.of(scope, parseDuration(window) as Millis, undefined),
    );
    if (scope === 'tool') continue;
    method('RateView', scope, ['string', 'string'], 'int', (rate: RateView, window: string, tool: string) =>
      rate.of(scope, parseDuration(window) as Millis, tool),
    );
  }
  return environment;
}

/** Type-checks an expression; names, types and the result are known to be right before it ever runs. */
function compile(
  environment: Environment,
  vocabulary: Vocabulary,
  shape: ArgsShape,
  source: string,
): ReturnType<CompileCondition> {
  const explained = (error: CelError, expansion?: Expansion) => explain(source, error, shape, vocabulary, expansion);
  try {
    const expanded = expandConditions(source, vocabulary.conditions, (text) => environment.parse(text).ast);
    if ('fault' in expanded) return expanded;
    const { expansion } = expanded;
    const program = environment.parse(expansion.text);
    const checked = program.check();
    if (!checked.valid) return { fault: explained(checked.error as CelError, expansion) };
    const fault = checkExpression(program.ast, expansion.text, { shape, ...vocabulary });
    if (fault !== undefined) return { fault: expansion.place(fault) };
    if (checked.type !== 'bool') {
      return {
        fault: {
          offset: 0,
          message: `the condition gives ${checked.type ?? 'nothing'}, not true or false`,
          hint: 'compare it with something, for example with ==',
        },
      };
    }
    return {
      condition: {
        evaluate: (activation) => evaluate(program, activation),
        needs: needsOf(program.ast),
        forecast: forecaster(program.ast, expansion.text, (part) => {
          const parsed = environment.parse(part);
          return (activation) => evaluate(parsed, activation);
        }),
        watches: watchesOf(program.ast),
        source: expressionOf(source),
      },
    };
  } catch (error) {
    return { fault: explained(error as CelError) };
  }
}

type CelError = Pick<ParseError, 'code' | 'range' | 'summary'>;

function evaluate(program: (activation: Activation) => unknown, activation: Activation): ConditionResult {
  try {
    const result = program(activation);
    return typeof result === 'boolean' ? result : { failed: 'it gave neither true nor false' };
  } catch (error) {
    if (error instanceof UnknownFact || (error as Error).cause instanceof UnknownFact) {
      return { failed: 'it looks at what is known only when a credential is asked for' };
    }
    const { code, summary } = error as CelError;
    if (code === 'unknown_variable') return { failed: 'it looks at the arguments of a request, and there is none yet' };
    // Other summaries may quote values of the task's context, which are not for every reader of a decision.
    return { failed: code === 'no_such_key' ? lowerFirst(summary) : (code ?? 'it failed').replaceAll('_', ' ') };
  }
}

function explain(
  source: string,
  error: CelError,
  shape: ArgsShape,
  vocabulary: Vocabulary,
  expansion: Expansion | undefined,
): ConditionFault {
  const text = expansion?.text ?? source;
  const offset = error.range?.start ?? 0;
  const word = text.slice(offset, error.range?.end ?? offset);
  const placed = (fault: ConditionFault) => expansion?.place(fault) ?? fault;
  const fault = (message: string, hint: string): ConditionFault => placed({ offset, message, hint });
  switch (error.code) {
    case 'unknown_variable':
      return fault(`unknown variable "${word}"`, suggestion(word, variableNames, 'variables'));
    case 'no_such_key': {
      const owner = /([A-Za-z_]\w*)\s*\.\s*$/.exec(text.slice(0, offset))?.[1] ?? '';
      return placed(unknownField(owner, word, offset, { shape, lists: vocabulary.lists }));
    }
    case 'unexpected_character':
      return fault(
        `the condition cannot be read: ${lowerFirst(error.summary)}`,
        word === '=' ? 'write == to compare' : 'conditions are CEL (https://cel.dev)',
      );
    case 'no_such_overload':
    case 'no_matching_overload':
      return fault(
        `types do not fit: ${lowerFirst(error.summary)}`,
        'labels and context hold text; int("…") makes a number of it',
      );
    default:
      return fault(
        `the condition cannot be read: ${lowerFirst(error.summary ?? String(error))}`,
        error.code?.includes('limit') === true || /exceed|too (many|deep)/i.test(error.summary ?? '')
          ? 'split it into several rules, or into named conditions and lists'
          : 'conditions are CEL (https://cel.dev); look for a missing operand, bracket or quote',
      );
  }
}

function lowerFirst(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1);
}

const constants = new Environment({ limits });

/** What an expression without any variable always comes to; undefined for all others. */
export function constantOf(source: string): boolean | undefined {
  try {
    const result: unknown = constants.evaluate(source);
    return typeof result === 'boolean' ? result : undefined;
  } catch {
    return undefined;
  }
}
