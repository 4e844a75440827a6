import type { ASTNode } from '@marcbachmann/cel-js';
import { definitionHint } from './condition-fault.ts';
import type { ConditionFault } from './condition-fault.ts';

const maxLength = 32 * 1024;

/** An expression with the conditions that it names written out, and the way back to where each part was written. */
export interface Expansion {
  text: string;
  /** The same fault, placed in the expression as it was written. */
  place(fault: ConditionFault): ConditionFault;
}

interface Piece {
  /** Where it stands in the expanded text. */
  start: number;
  end: number;
  /** Where it stands in the expression as written. */
  origin: number;
  /** Named condition that it comes from. */
  name: string | undefined;
}

/**
 * Writes out `conditions.<name>`. Expanding before the check gives each use the types of its own rule's arguments. A name
 * that leads back to itself is refused. Throws the parser's error.
 */
export function expandConditions(
  source: string,
  conditions: ReadonlyMap<string, string>,
  parse: (text: string) => ASTNode,
): { expansion: Expansion } | { fault: ConditionFault } {
  if (!source.includes('conditions')) return { expansion: { text: source, place: (fault) => fault } };
  const pieces: Piece[] = [];
  let text = '';
  let fault: ConditionFault | undefined;

  const write = (expression: string, trail: readonly string[], origin: number | undefined): void => {
    let from = 0;
    const copy = (to: number) => {
      const piece = { start: text.length, end: text.length + to - from, origin: origin ?? from, name: trail[0] };
      pieces.push(piece);
      text += expression.slice(from, to);
    };
    for (const { node, name } of references(parse(expression))) {
      if (fault !== undefined || text.length > maxLength) return;
      const at = origin ?? node.start;
      const body = conditions.get(name);
      if (body === undefined) {
        const hint = definitionHint(name, conditions.keys(), 'conditions');
        const where = trail.length === 0 ? '' : `in condition "${trail.at(-1)}": `;
        // The name begins after `conditions.`
        const offset = origin ?? expression.indexOf(name, node.start + 'conditions'.length);
        fault = { offset, message: `${where}there is no condition "${name}"`, hint };
        return;
      }
      if (trail.includes(name)) {
        const circle = [...trail.slice(trail.indexOf(name)), name].join(' → ');
        const hint = 'write out in one of them what it takes from the other';
        fault = { offset: at, message: `condition "${name}" depends on itself: ${circle}`, hint };
        return;
      }
      copy(node.start);
      text += '(';
      write(body, [...trail, name], at);
      // The end of the line ends a comment, which would take the bracket with it.
      text += '\n)';
      from = node.end;
    }
    copy(expression.length);
  };
  write(source, [], undefined);
  if (fault === undefined && text.length > maxLength) {
    const message = `the conditions that it names make it longer than ${maxLength} characters`;
    fault = { offset: 0, message, hint: 'name fewer of them, or shorten them' };
  }
  if (fault !== undefined) return { fault };
  return {
    expansion: {
      text,
      place: (found) => {
        const piece = pieces.find(({ start, end }) => found.offset >= start && found.offset < end) ?? pieces.at(-1)!;
        if (piece.name === undefined) return { ...found, offset: piece.origin + found.offset - piece.start };
        return { ...found, offset: piece.origin, message: `in condition "${piece.name}": ${found.message}` };
      },
    },
  };
}

function references(root: ASTNode): { node: ASTNode; name: string }[] {
  const found: { node: ASTNode; name: string }[] = [];
  const visit = (node: ASTNode): void => {
    if (node.op === '.' && node.args[0].op === 'id' && node.args[0].args === 'conditions') {
      found.push({ node, name: node.args[1] });
      return;
    }
    for (const child of children(node.args)) visit(child);
  };
  visit(root);
  return found.sort((a, b) => a.node.start - b.node.start);
}

export function* children(args: unknown): Generator<ASTNode> {
  if (Array.isArray(args)) for (const arg of args) yield* children(arg);
  else if (typeof args === 'object' && args !== null && 'op' in args && 'args' in args) yield args as ASTNode;
}

/** One line of an expression, for people. */
export function expressionOf(source: string): string {
  return source.replace(/\s+/g, ' ').trim();
}
