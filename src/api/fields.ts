import { fieldInvalid } from '../domain/errors.ts';
import { isId } from '../domain/ids.ts';

/** Bounds of single fields, beyond what the chain checks of every message. Each error names the proto field. */

export function taskIdField(value: string, field = 'task_id'): string {
  if (!isId('tsk', value))
    throw fieldInvalid(field, 'must be a task id such as tsk_ followed by 32 hexadecimal digits');
  return value;
}

export function leaseIdField(value: string, field = 'lease_id'): string {
  if (!isId('lse', value))
    throw fieldInvalid(field, 'must be a lease id such as lse_ followed by 32 hexadecimal digits');
  return value;
}

export function callIdField(field: string, value: string): string {
  if (!isId('cal', value))
    throw fieldInvalid(field, 'must be a call id such as cal_ followed by 32 hexadecimal digits');
  return value;
}

export function approvalIdField(field: string, value: string): string {
  if (!isId('apr', value))
    throw fieldInvalid(field, 'must be an approval name such as apr_ followed by 32 hexadecimal digits');
  return value;
}

export function lockIdField(value: string): string {
  if (!isId('lck', value))
    throw fieldInvalid('lock_id', 'must be a lock id such as lck_ followed by 32 hexadecimal digits');
  return value;
}

export function text(field: string, value: string, min: number, max: number): string {
  if (value.length < min) throw fieldInvalid(field, 'must not be empty');
  if (value.length > max) throw fieldInvalid(field, `must be at most ${max} characters`);
  return value;
}

const namePattern = /^[a-z0-9][a-z0-9._-]{0,62}$/;

export function name(field: string, value: string): string {
  if (!namePattern.test(value)) {
    throw fieldInvalid(field, 'must be a registered name: 1 to 63 of a-z, 0-9, dot, underscore, hyphen');
  }
  return value;
}

export function pageSize(value: number, fallback: number): number {
  if (value < 0 || value > 1_000) throw fieldInvalid('page_size', 'must be between 0 and 1,000');
  return value === 0 ? fallback : value;
}

/** Page tokens are the last id of the page before (AIP-158: opaque to the caller). */
export function pageToken(value: string, valid: (id: string) => boolean): string | undefined {
  if (value === '') return undefined;
  const id = Buffer.from(value, 'base64url').toString('utf8');
  if (!valid(id)) throw fieldInvalid('page_token', 'is not one that this method answered with');
  return id;
}

export function nextPageToken(id: string | undefined): string {
  return id === undefined ? '' : Buffer.from(id, 'utf8').toString('base64url');
}

const contextKey = /^[a-z][a-z0-9_.-]{0,62}$/;

/** The same as the labels of agents and tools have in their documents. */
const labelKey = /^[a-z]([a-z0-9_.-]{0,61}[a-z0-9])?$/;

/** Facts for policy that a task is opened with. */
export function contextField(field: string, context: Readonly<Record<string, string>>): Record<string, string> {
  return boundedMap(field, context, contextKey, 1_024);
}

/** What a task belongs to. */
export function labelsField(field: string, labels: Readonly<Record<string, string>>): Record<string, string> {
  return boundedMap(field, labels, labelKey, 256);
}

function boundedMap(
  field: string,
  map: Readonly<Record<string, string>>,
  keys: RegExp,
  longest: number,
): Record<string, string> {
  const entries = Object.entries(map);
  if (entries.length > 64) throw fieldInvalid(field, 'must have at most 64 entries');
  for (const [key, value] of entries) {
    if (!keys.test(key)) throw fieldInvalid(field, `keys must match ${keys.source.slice(1, -1)}`);
    text(`${field}["${key}"]`, value, 0, longest);
  }
  // Sorted, so that the same content has the same bytes wherever it is kept.
  return Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)));
}
