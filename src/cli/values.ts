import { InvalidArgumentError } from 'commander';
import { parseDuration } from '../config/duration.ts';
import { tiers, type Tier } from '../domain/model.ts';
import { CliError } from './cli-error.ts';

/** Parsers of option values. commander puts the option's name before the message. */

export function duration(text: string): number {
  const milliseconds = parseDuration(text);
  if (milliseconds === undefined || milliseconds <= 0) {
    throw new InvalidArgumentError('It is a duration such as 30s, 10m or 1h30m.');
  }
  return milliseconds;
}

export interface ToolAndTier {
  tool: string;
  tier: Tier;
}

export function toolAndTier(text: string): ToolAndTier {
  const at = text.lastIndexOf(':');
  const tool = text.slice(0, at);
  const tier = tiers.find((name) => name === text.slice(at + 1));
  if (at <= 0 || tier === undefined) {
    throw new InvalidArgumentError(`It is TOOL:TIER, with a tier of ${tiers.join(', ')}; for example warehouse:read.`);
  }
  return { tool, tier };
}

/** For options that may be given again and again. */
export function collect<T>(parse: (text: string) => T): (text: string, previous: T[] | undefined) => T[] {
  return (text, previous) => [...(previous ?? []), parse(text)];
}

/** The bounds are the broker's (OpenTaskRequest.context); said here, the answer names the entry. */
export function contextEntry(text: string): [string, string] {
  const at = text.indexOf('=');
  const key = text.slice(0, at);
  if (at <= 0 || !/^[a-z][a-z0-9_.-]{0,62}$/.test(key)) {
    throw new InvalidArgumentError('It is KEY=VALUE, with a key of lower-case letters, digits, "_", "." and "-".');
  }
  if (text.length - at - 1 > 1024) throw new InvalidArgumentError('A value has at most 1,024 characters.');
  return [key, text.slice(at + 1)];
}

/** The bounds are the broker's (OpenTaskRequest.labels), which are those of agents' and tools' labels. */
export function labelEntry(text: string): [string, string] {
  const at = text.indexOf('=');
  const key = text.slice(0, at);
  if (at <= 0 || !/^[a-z]([a-z0-9_.-]{0,61}[a-z0-9])?$/.test(key)) {
    throw new InvalidArgumentError(
      'It is KEY=VALUE, with a key of lower-case letters, digits, "_", "." and "-", that ends in a letter or digit.',
    );
  }
  if (text.length - at - 1 > 256) throw new InvalidArgumentError('A value has at most 256 characters.');
  return [key, text.slice(at + 1)];
}

/** For maps: each key once. */
export function uniqueEntries(option: string, entries: readonly [string, string][] = []): Record<string, string> {
  const record: Record<string, string> = {};
  for (const [key, value] of entries) {
    if (Object.hasOwn(record, key)) {
      throw new CliError('usage', `${option} names ${key} twice; give each key once`, { reason: 'USAGE' });
    }
    record[key] = value;
  }
  return record;
}

/** A declared argument of a tool: a number or a boolean where it reads as one, a string otherwise or when quoted. */
export function requestArgument(text: string): [string, string | number | boolean] {
  const at = text.indexOf('=');
  const name = text.slice(0, at);
  if (at <= 0 || !/^[a-z][a-z0-9_]{0,62}$/.test(name)) {
    throw new InvalidArgumentError('It is NAME=VALUE, with a name of lower-case letters, digits and "_".');
  }
  const written = text.slice(at + 1);
  try {
    const value: unknown = JSON.parse(written);
    if (typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean') return [name, value];
  } catch {
    // No JSON: the text itself.
  }
  return [name, written];
}

export function instant(text: string): number {
  // RFC 3339 §5.6, with the offset that makes it one moment.
  const valid = /^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:\d\d)$/.test(text);
  const milliseconds = valid ? Date.parse(text.replace(' ', 'T')) : NaN;
  if (Number.isNaN(milliseconds)) {
    throw new InvalidArgumentError('It is a time with its offset, such as 2026-01-31T18:00:00Z.');
  }
  return milliseconds;
}

export function uuid(text: string): string {
  if (!/^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$/.test(text)) {
    throw new InvalidArgumentError('It is a UUID; without the option a new one is made.');
  }
  return text.toLowerCase();
}

export function count(most: number): (text: string) => number {
  return (text) => {
    const value = /^\d{1,9}$/.test(text) ? Number(text) : 0;
    if (value < 1 || value > most) throw new InvalidArgumentError(`It is a whole number from 1 to ${most}.`);
    return value;
  };
}

const identified = {
  tsk: 'A task',
  lse: 'A lease',
  apr: 'An approval',
  lck: 'A lock',
  cal: 'A call',
  sig: 'A signal',
} as const;

export function identifier(prefix: keyof typeof identified): (text: string) => string {
  return (text) => {
    if (!new RegExp(`^${prefix}_[0-9a-f]{32}$`).test(text)) {
      const what = identified[prefix];
      throw new InvalidArgumentError(`${what} identifier looks like ${prefix}_0198f1c2…, with 32 hexadecimal digits.`);
    }
    return text;
  };
}

/** For an argument that takes several. */
export function identifiers(prefix: keyof typeof identified): (text: string, before?: string[]) => string[] {
  const one = identifier(prefix);
  return (text, before = []) => [...before, one(text)];
}

export function serverUrl(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || !['http:', 'https:'].includes(url.protocol)) {
    throw new InvalidArgumentError('It is an http or https URL, such as https://leasehold.internal:7080.');
  }
  if (url.username !== '' || url.password !== '') {
    throw new InvalidArgumentError('It holds no user or password: the attestation is the only credential.');
  }
  return url.href.replace(/\/$/, '');
}
