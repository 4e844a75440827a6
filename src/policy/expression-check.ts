import type { ASTNode } from '@marcbachmann/cel-js';
import { parseDuration } from '../config/duration.ts';
import { suggestion } from '../config/suggest.ts';
import { isSignalKind, knownKinds } from '../domain/signals/model.ts';
import { fieldsOf } from './activation.ts';
import { unknownField } from './condition-fault.ts';
import type { ConditionFault, DefinedFields } from './condition-fault.ts';
import { children } from './expand.ts';
import { regexpFault } from './regexp-check.ts';
import { isTimeZone } from './wall-clock.ts';

const loops = new Set(['all', 'exists', 'exists_one', 'map', 'filter']);
const maxLoopDepth = 2;
const maxWindow = 31 * 86_400_000;

export interface Names extends DefinedFields {
  environment: Readonly<Record<string, string>> | undefined;
}

/** What the type-checker lets through and a policy must not hold: names hidden from the check, and work without a bound. */
export function checkExpression(
  node: ASTNode,
  source: string,
  names: Names,
  loopDepth = 0,
): ConditionFault | undefined {
  let depth = loopDepth;
  let fault: ConditionFault | undefined;
  if (node.op === 'call') {
    const [name, args] = node.args;
    if (name === 'dyn') {
      return { offset: node.start, message: 'dyn() hides mistakes from the check', hint: 'leave it out' };
    }
    // The engine takes any field inside has(), so that a misspelt one would be absent for ever.
    if (name === 'has' && args[0] !== undefined) fault = hasFault(args[0], source, names);
  } else if (node.op === 'rcall') {
    const [name, receiver, args] = node.args;
    if (loops.has(name) && ++depth > maxLoopDepth) {
      return {
        offset: node.start,
        message: `${name}() is nested more than ${maxLoopDepth} deep`,
        hint: 'use a list and "in"',
      };
    }
    if (name === 'matches' && args[0] !== undefined) fault = patternFault(args[0]);
    if (name === 'zone' && args[0] !== undefined) fault = zoneFault(args[0]);
    if (receiver.op === 'id' && receiver.args === 'rate') fault = rateFault(args);
    if (receiver.op === 'id' && receiver.args === 'signals') fault = kindFault(name, args);
  } else if (node.op === '.' || node.op === '[]') {
    fault = environmentFault(node, source, names);
  }
  if (fault !== undefined) return fault;
  for (const child of children(node.args)) {
    const inner = checkExpression(child, source, names, depth);
    if (inner !== undefined) return inner;
  }
  return undefined;
}

function literal(node: ASTNode): string | undefined {
  return node.op === 'value' && typeof node.args === 'string' ? node.args : undefined;
}

function patternFault(pattern: ASTNode): ConditionFault | undefined {
  const text = literal(pattern);
  const fault =
    text === undefined ? 'the pattern must be a literal text, so that it can be checked' : regexpFault(text);
  return fault === undefined
    ? undefined
    : { offset: pattern.start, message: fault, hint: 'startsWith, endsWith, contains and "in" often do' };
}

function zoneFault(zone: ASTNode): ConditionFault | undefined {
  const text = literal(zone);
  if (text !== undefined && isTimeZone(text)) return undefined;
  return {
    offset: zone.start,
    message: text === undefined ? 'the time zone must be a literal text' : `there is no time zone "${text}"`,
    hint: "name a place, for example time.zone('Europe/Berlin').hour",
  };
}

/** Storage is asked before the condition runs, so what to ask has to be known when it is loaded. */
function rateFault([window, tool]: readonly ASTNode[]): ConditionFault | undefined {
  if (window === undefined) return undefined;
  const text = literal(window);
  const span = text === undefined ? undefined : parseDuration(text);
  if (span === undefined || span < 1_000 || span > maxWindow) {
    const message =
      text === undefined ? 'the window must be a literal text' : `"${text}" is not a duration between 1s and 31d`;
    return { offset: window.start, message, hint: "write it like rate.agent('1h')" };
  }
  if (tool === undefined || literal(tool) !== undefined) return undefined;
  return {
    offset: tool.start,
    message: 'the tool must be a literal name',
    hint: "write it like rate.agent('1h', 'crm')",
  };
}

/** A misspelt kind would be one that nobody ever reports. */
function kindFault(method: string, [kind]: readonly ASTNode[]): ConditionFault | undefined {
  if (kind === undefined) return undefined;
  const text = literal(kind);
  if (text !== undefined && isSignalKind(text)) return undefined;
  if (text === undefined) {
    const hint = `write it like signals.${method}('owner_left')`;
    return { offset: kind.start, message: 'the kind of signal must be a literal text', hint };
  }
  const known = suggestion(text, Object.keys(knownKinds), 'kinds');
  return {
    offset: kind.start,
    message: `there is no kind of signal "${text}"`,
    hint: known.endsWith('?') ? known : `${known}; a kind of your own begins with x_`,
  };
}

/** `environment.region`, when the configuration is at hand to say which names there are. */
function environmentFault(node: ASTNode, source: string, { environment }: Names): ConditionFault | undefined {
  if (environment === undefined || (node.op !== '.' && node.op !== '[]')) return undefined;
  const [owner, field] = node.args;
  if (owner.op !== 'id' || owner.args !== 'environment') return undefined;
  const name = typeof field === 'string' ? field : literal(field);
  if (name === undefined || Object.hasOwn(environment, name)) return undefined;
  const hint = suggestion(name, Object.keys(environment), 'names');
  return {
    offset: source.indexOf(name, owner.end),
    message: `the configuration's environment has no "${name}"`,
    hint,
  };
}

/** `has(task.contxt)`, `has(task.intent)`: the part after the variable has to be a declared field. */
function hasFault(argument: ASTNode, source: string, names: Names): ConditionFault | undefined {
  let node = argument;
  while (node.op === '.') {
    const [owner, field] = node.args;
    if (owner.op === 'id') {
      const fields = owner.args === 'args' ? names.shape : owner.args === 'lists' ? names.lists : fieldsOf(owner.args);
      if (fields === undefined || Object.hasOwn(fields, field)) return undefined;
      return unknownField(owner.args, field, source.indexOf(field, owner.end), names);
    }
    node = owner;
  }
  return undefined;
}
