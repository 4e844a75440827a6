import { Environment } from '@marcbachmann/cel-js';
import type { ParseError } from '@marcbachmann/cel-js';
import { suggestion } from '../config/suggest.ts';
import { variables } from './activation.ts';
import type { Activation } from './activation.ts';
import { unknownField } from './condition-fault.ts';
import type { ConditionFault } from './condition-fault.ts';
import { checkExpression } from './expression-check.ts';

/** What a condition came to: whether it holds, or why that cannot be said. */
export type ConditionResult = boolean | { failed: string };
export type Condition = (activation: Activation) => ConditionResult;

// Far above what a person can read, and low enough that no expression is slow.
const limits = { maxAstNodes: 500, maxDepth: 32, maxListElements: 256, maxMapEntries: 64, maxCallArguments: 8 };

const environment = new Environment({ limits });
for (const [name, { ctor, fields }] of Object.entries(variables)) {
  environment.registerType(ctor.name, { ctor, fields: { ...fields } });
  environment.registerVariable(name, ctor.name);
}
environment.registerVariable('tier', 'string');

const variableNames = [...Object.keys(variables), 'tier'];

/** Type-checks an expression; names, types and the result are known to be right before it ever runs. */
export function compileCondition(source: string): { condition: Condition } | { fault: ConditionFault } {
  try {
    const program = environment.parse(source);
    const checked = program.check();
    if (!checked.valid) return { fault: explain(source, checked.error as CelError) };
    const fault = checkExpression(program.ast, source);
    if (fault !== undefined) return { fault };
    if (checked.type !== 'bool') {
      return {
        fault: {
          offset: 0,
          message: `the condition gives ${checked.type ?? 'nothing'}, not true or false`,
          hint: 'compare it with something, for example with ==',
        },
      };
    }
    return { condition: (activation) => evaluate(program, activation) };
  } catch (error) {
    return { fault: explain(source, error as CelError) };
  }
}

type CelError = Pick<ParseError, 'code' | 'range' | 'summary'>;

function evaluate(program: (activation: Activation) => unknown, activation: Activation): ConditionResult {
  try {
    const result = program(activation);
    return typeof result === 'boolean' ? result : { failed: 'it gave neither true nor false' };
  } catch (error) {
    const { code, summary } = error as CelError;
    // Other summaries may quote values of the task's context, which are not for every reader of a decision.
    return { failed: code === 'no_such_key' ? lowerFirst(summary) : (code ?? 'it failed').replaceAll('_', ' ') };
  }
}

function explain(source: string, error: CelError): ConditionFault {
  const offset = error.range?.start ?? 0;
  const word = source.slice(offset, error.range?.end ?? offset);
  const fault = (message: string, hint?: string): ConditionFault => ({
    offset,
    message,
    ...(hint === undefined ? {} : { hint }),
  });
  switch (error.code) {
    case 'unknown_variable':
      return fault(`unknown variable "${word}"`, suggestion(word, variableNames, 'variables'));
    case 'no_such_key': {
      const owner = /([A-Za-z_]\w*)\s*\.\s*$/.exec(source.slice(0, offset))?.[1] ?? '';
      return unknownField(owner, word, offset);
    }
    case 'unexpected_character':
      return fault(
        `the condition cannot be read: ${lowerFirst(error.summary)}`,
        word === '=' ? 'write == to compare' : undefined,
      );
    case 'no_such_overload':
    case 'no_matching_overload':
      return fault(
        `types do not fit: ${lowerFirst(error.summary)}`,
        'labels and context hold text; int("…") makes a number of it',
      );
    default:
      return fault(`the condition cannot be read: ${lowerFirst(error.summary ?? String(error))}`);
  }
}

function lowerFirst(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1);
}
