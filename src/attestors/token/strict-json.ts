/** What two JSON readers could understand differently is refused: this module finds it (RFC 8259 §4, RFC 8725 §2.4). */

const maxDepth = 32;
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** The message says what is wrong and never quotes the text. */
export class StrictJsonError extends Error {}

/** Parses UTF-8 JSON. Member names must be unique at every depth, and no string may hold NUL or half a surrogate pair. */
export function parseStrictJson(bytes: Uint8Array): unknown {
  const text = decode(bytes);
  const value = parse(text);
  inspect(text);
  return value;
}

export function parseStrictObject(bytes: Uint8Array): Record<string, unknown> {
  const value = parseStrictJson(bytes);
  if (!isObject(value)) throw new StrictJsonError('is not a JSON object');
  return value;
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

export function decode(bytes: Uint8Array): string {
  try {
    return utf8.decode(bytes);
  } catch {
    throw new StrictJsonError('is not UTF-8');
  }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    // The engine's own message quotes the text, which may be a key that was put in the wrong file.
    const place = /\(line \d+ column \d+\)/.exec((error as Error).message)?.[0];
    throw new StrictJsonError(place ? `is not JSON ${place}` : 'is not JSON');
  }
}

/** Walks text that is known to be JSON. JSON.parse keeps the last of two equal members silently, hence a second look. */
function inspect(text: string): void {
  const open: { names: Set<string> | undefined; nameNext: boolean }[] = [];
  for (let at = 0; at < text.length; at++) {
    const scope = open.at(-1);
    const character = text[at];
    if (character === '{' || character === '[') {
      if (open.length === maxDepth) throw new StrictJsonError(`is nested deeper than ${maxDepth}`);
      open.push({ names: character === '{' ? new Set() : undefined, nameNext: character === '{' });
    } else if (character === '}' || character === ']') open.pop();
    else if (character === ',' && scope?.names) scope.nameNext = true;
    else if (character === '"') {
      const end = endOfString(text, at);
      const content = readString(text.slice(at, end + 1));
      if (scope?.names && scope.nameNext) {
        if (scope.names.has(content)) throw new StrictJsonError('names a member twice');
        scope.names.add(content);
        scope.nameNext = false;
      }
      at = end;
    }
  }
}

function endOfString(text: string, start: number): number {
  let at = start + 1;
  while (text[at] !== '"') at += text[at] === '\\' ? 2 : 1;
  return at;
}

function readString(literal: string): string {
  if (!literal.includes('\\')) return literal.slice(1, -1);
  const content = JSON.parse(literal) as string;
  if (content.includes('\0')) throw new StrictJsonError('holds a NUL character');
  if (!content.isWellFormed()) throw new StrictJsonError('holds half a surrogate pair');
  return content;
}
