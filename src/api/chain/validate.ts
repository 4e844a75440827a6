import type { DescEnum, DescField, DescMessage, Message } from '@bufbuild/protobuf';
import type { Duration, Timestamp } from '@bufbuild/protobuf/wkt';
import { getOption, hasOption } from '@bufbuild/protobuf';
import { max_bytes as maxBytesOption } from '../../gen/leasehold/v1/options_pb.js';
import { BrokerError } from '../../domain/errors.ts';
import type { FieldViolation } from '../../domain/errors.ts';

/**
 * Bounds that hold for every request, whatever it means: compiled from the descriptor once, so that no field of a later
 * message can be forgotten. Handlers check what a field means, never again whether it is sane.
 */

const maxStringBytes = 4_096;
const maxBytes = 65_536;
const maxEntries = 1_000;
const maxPageSize = 1_000;
const maxJsonDepth = 8;
const maxViolations = 16;
/** 9999-12-31T23:59:59Z, the end of what google.protobuf.Timestamp can say. */
const maxTimestampSeconds = 253_402_300_799n;
/** 100 years: beyond any use, and sums with an instant stay within a Timestamp. */
const maxDurationSeconds = 3_155_760_000n;
const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** Throws FIELD_INVALID, naming every malformed field by its proto path. */
export type Validate = (message: Message) => void;

type Report = (field: string, description: string) => void;
type Check = (value: unknown, path: string, report: Report) => void;
type CheckMessage = (message: Message, prefix: string, report: Report) => void;

export function compileValidator(desc: DescMessage): Validate {
  const check = compileMessage(desc, new Map());
  return (message) => {
    let violations: FieldViolation[] | undefined;
    check(message, '', (field, description) => {
      violations ??= [];
      if (violations.length < maxViolations) violations.push({ field: field.slice(0, 256), description });
    });
    const first = violations?.[0];
    if (first !== undefined) {
      throw new BrokerError('FIELD_INVALID', `${first.field}: ${first.description}.`, { violations: violations! });
    }
  };
}

function compileMessage(desc: DescMessage, compiled: Map<string, CheckMessage>): CheckMessage {
  const known = compiled.get(desc.typeName);
  if (known !== undefined) return known;
  if (desc.typeName === 'google.protobuf.Timestamp') return checkTimestamp as CheckMessage;
  if (desc.typeName === 'google.protobuf.Duration') return checkDuration as CheckMessage;
  // protobuf-es gives a Struct as the plain JSON that it stands for.
  if (desc.typeName === 'google.protobuf.Struct') return (value, path, report) => checkJson(value, path, report);

  const fields: { field: DescField; check: Check }[] = [];
  const checkFields: CheckMessage = (message, prefix, report) => {
    for (const { field, check } of fields) {
      const value = read(message, field);
      if (value !== undefined) check(value, prefix === '' ? field.name : `${prefix}.${field.name}`, report);
    }
  };
  // Registered before its fields are compiled: a message may hold itself.
  compiled.set(desc.typeName, checkFields);
  for (const field of desc.fields) {
    const check = compileField(field, compiled);
    if (check !== undefined) fields.push({ field, check });
  }
  return checkFields;
}

function read(message: Message, field: DescField): unknown {
  const values = message as unknown as Record<string, unknown>;
  if (field.oneof === undefined) return values[field.localName];
  const oneof = values[field.oneof.localName] as { case: string | undefined; value?: unknown } | undefined;
  return oneof?.case === field.localName ? oneof.value : undefined;
}

function compileField(field: DescField, compiled: Map<string, CheckMessage>): Check | undefined {
  switch (field.fieldKind) {
    case 'scalar':
      return checkScalar(field);
    case 'enum':
      return checkEnum(field.enum);
    case 'message': {
      const check = compileMessage(field.message, compiled);
      return (value, path, report) => check(value as Message, path, report);
    }
    case 'list':
      return checkList(elementCheck(field, compiled));
    case 'map':
      return checkMap(elementCheck(field, compiled));
  }
}

function elementCheck(
  field: DescField & { fieldKind: 'list' | 'map' },
  compiled: Map<string, CheckMessage>,
): Check | undefined {
  const kind = field.fieldKind === 'list' ? field.listKind : field.mapKind;
  if (kind === 'enum') return checkEnum(field.enum!);
  if (kind === 'message') {
    const check = compileMessage(field.message!, compiled);
    return (value, path, report) => check(value as Message, path, report);
  }
  return checkAny;
}

const checkAny: Check = (value, path, report) => {
  if (typeof value === 'string') checkString(value, path, report);
  else if (value instanceof Uint8Array) checkBytes(value, path, report);
};

function checkScalar(field: DescField): Check | undefined {
  if (field.name === 'request_id') return checkRequestId;
  if (field.name === 'page_size') return checkPageSize;
  if (hasOption(field, maxBytesOption)) return checkSize(getOption(field, maxBytesOption));
  return checkAny;
}

const checkString = (value: string, path: string, report: Report): void => {
  // A UTF-16 unit takes at most three bytes in UTF-8; most strings need no counting.
  if (
    value.length > maxStringBytes ||
    (value.length * 3 > maxStringBytes && Buffer.byteLength(value) > maxStringBytes)
  ) {
    report(path, `must be at most ${maxStringBytes} bytes`);
  } else if (value.includes('\0')) {
    report(path, 'must not hold a NUL character');
  }
};

const checkBytes = (value: Uint8Array, path: string, report: Report): void => {
  if (value.byteLength > maxBytes) report(path, `must be at most ${maxBytes} bytes`);
};

/** The contract's own statement of a wider bound (leasehold/v1/options.proto). */
function checkSize(most: number): Check {
  return (value, path, report) => {
    const size = typeof value === 'string' ? Buffer.byteLength(value) : (value as Uint8Array).byteLength;
    if (size > most) report(path, `must be at most ${most} bytes`);
    else if (typeof value === 'string' && value.includes('\0')) report(path, 'must not hold a NUL character');
  };
}

function checkJson(value: unknown, path: string, report: Report, depth = 0): void {
  if (typeof value === 'string') return checkString(value, path, report);
  if (value === null || typeof value !== 'object') return;
  if (depth === maxJsonDepth) return report(path, `must nest at most ${maxJsonDepth} levels`);
  const entries = Object.entries(value);
  if (entries.length > maxEntries) return report(path, `must have at most ${maxEntries} entries`);
  for (const [key, entry] of entries) {
    const at = `${path}.${key.length > 64 ? `${key.slice(0, 64)}…` : key}`;
    checkString(key, at, report);
    checkJson(entry, at, report, depth + 1);
  }
}

const checkRequestId: Check = (value, path, report) => {
  if (value !== '' && !(typeof value === 'string' && uuid.test(value))) report(path, 'must be a UUID (AIP-155)');
};

const checkPageSize: Check = (value, path, report) => {
  if (typeof value !== 'number' || value < 0 || value > maxPageSize) report(path, `must be 0 to ${maxPageSize}`);
};

function checkEnum(desc: DescEnum): Check {
  return (value, path, report) => {
    if (desc.value[value as number] === undefined) report(path, `is not a value of ${desc.name}`);
  };
}

function checkList(check: Check | undefined): Check {
  return (value, path, report) => {
    const list = value as readonly unknown[];
    if (list.length > maxEntries) return report(path, `must have at most ${maxEntries} entries`);
    if (check === undefined) return;
    for (let i = 0; i < list.length; i++) check(list[i], `${path}[${i}]`, report);
  };
}

function checkMap(check: Check | undefined): Check {
  return (value, path, report) => {
    const keys = Object.keys(value as object);
    if (keys.length > maxEntries) return report(path, `must have at most ${maxEntries} entries`);
    for (const key of keys) {
      const entry = `${path}[${JSON.stringify(key.length > 64 ? `${key.slice(0, 64)}…` : key)}]`;
      checkString(key, entry, report);
      check?.((value as Record<string, unknown>)[key], entry, report);
    }
  };
}

function checkTimestamp({ seconds, nanos }: Timestamp, path: string, report: Report): void {
  if (seconds < 0n || seconds > maxTimestampSeconds) report(path, 'must be within the years 1970 to 9999');
  else if (nanos < 0 || nanos > 999_999_999) report(path, 'must have nanos of 0 to 999,999,999');
}

function checkDuration({ seconds, nanos }: Duration, path: string, report: Report): void {
  if (seconds < 0n || nanos < 0) report(path, 'must not be negative');
  else if (seconds > maxDurationSeconds) report(path, 'must be at most 100 years');
  else if (nanos > 999_999_999) report(path, 'must have nanos of 0 to 999,999,999');
}
