import { fieldInvalid } from '../errors.ts';

const maxBytes = 16_384;

/**
 * Canonical JSON (RFC 8785) of whatever a call was given: members sorted by UTF-16 code units, numbers and text as
 * ECMAScript spells them (§3.2.2). The doors have bounded its depth and its number of entries. Throws FIELD_INVALID.
 */
export function canonicalJson(value: unknown): string {
  const text = write(value);
  if (text.length > maxBytes) throw fieldInvalid('arguments', `must be at most ${maxBytes} bytes as JSON`);
  return text;
}

function write(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(write).join(',')}]`;
  if (typeof value === 'object' && value !== null) {
    const members = value as Record<string, unknown>;
    // `sort` compares code units, which is the order that RFC 8785 §3.2.3 asks for.
    const written = Object.keys(members)
      .sort()
      .map((name) => `${scalar(name)}:${write(members[name])}`);
    return `{${written.join(',')}}`;
  }
  return scalar(value);
}

function scalar(value: unknown): string {
  if (typeof value === 'string' && !value.isWellFormed()) {
    throw fieldInvalid('arguments', 'hold text that is not well-formed');
  }
  if (typeof value === 'number' && !Number.isFinite(value)) {
    throw fieldInvalid('arguments', 'hold a number that JSON cannot say');
  }
  return JSON.stringify(value) ?? 'null';
}
