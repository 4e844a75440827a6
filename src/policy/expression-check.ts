import type { ASTNode } from '@marcbachmann/cel-js';
import { fieldsOf } from './activation.ts';
import { unknownField } from './condition-fault.ts';
import type { ConditionFault } from './condition-fault.ts';
import { regexpFault } from './regexp-check.ts';

const loops = new Set(['all', 'exists', 'exists_one', 'map', 'filter']);
const maxLoopDepth = 2;

/** What the type-checker lets through and a policy must not hold: names hidden from the check, and work without a bound. */
export function checkExpression(node: ASTNode, source: string, loopDepth = 0): ConditionFault | undefined {
  let depth = loopDepth;
  if (node.op === 'call') {
    const [name, args] = node.args;
    if (name === 'dyn') {
      return { offset: node.start, message: 'dyn() hides mistakes from the check', hint: 'leave it out' };
    }
    // The engine takes any field inside has(), so that a misspelt one would be absent for ever.
    const fault = name === 'has' && args[0] !== undefined ? hasFault(args[0], source) : undefined;
    if (fault !== undefined) return fault;
  } else if (node.op === 'rcall') {
    const [name, , args] = node.args;
    if (loops.has(name) && ++depth > maxLoopDepth) {
      return { offset: node.start, message: `${name}() is nested more than ${maxLoopDepth} deep` };
    }
    if (name === 'matches' && args[0] !== undefined) {
      const [pattern] = args;
      const fault =
        pattern.op === 'value' && typeof pattern.args === 'string'
          ? regexpFault(pattern.args)
          : 'the pattern must be a literal text, so that it can be checked';
      if (fault !== undefined) {
        return { offset: pattern.start, message: fault, hint: 'startsWith, endsWith, contains and "in" often do' };
      }
    }
  }
  for (const child of children(node.args)) {
    const fault = checkExpression(child, source, depth);
    if (fault !== undefined) return fault;
  }
  return undefined;
}

/** `has(task.contxt)`, `has(task.intent)`: the part after the variable has to be a declared field. */
function hasFault(argument: ASTNode, source: string): ConditionFault | undefined {
  let node = argument;
  while (node.op === '.') {
    const [owner, field] = node.args;
    if (owner.op === 'id') {
      const fields = fieldsOf(owner.args);
      if (fields === undefined || Object.hasOwn(fields, field)) return undefined;
      return unknownField(owner.args, field, source.indexOf(field, owner.end));
    }
    node = owner;
  }
  return undefined;
}

function* children(args: unknown): Generator<ASTNode> {
  if (Array.isArray(args)) for (const arg of args) yield* children(arg);
  else if (typeof args === 'object' && args !== null && 'op' in args && 'args' in args) yield args as ASTNode;
}
