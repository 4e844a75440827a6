import type { DescField, DescMessage, JsonObject, JsonValue } from '@bufbuild/protobuf';
import { fromJson } from '@bufbuild/protobuf';
import type { Method } from '../api/chain/describe.ts';
import { decodeBinary } from '../api/chain/request.ts';
import { BrokerError, fieldInvalid } from '../domain/errors.ts';

/**
 * Checks that a request can be parsed before the library does: of binary that it cannot parse the library says INTERNAL,
 * and of JSON not which field is wrong. The same bytes are parsed twice for it; the fast door is the other one.
 */

/** A misspelt field or enum value in JSON must not silently mean "not given". */
export const strictJson = { ignoreUnknownFields: false };

const envelopeHead = 5;
const compressedFlag = 1;

export function checkBody(method: Method, contentType: string, body: Buffer): void {
  const [type = ''] = contentType.split(';', 1);
  const enveloped = type.startsWith('application/grpc-web') || type.startsWith('application/connect+');
  const message = enveloped ? oneEnvelope(body) : body;
  if (type === 'application/json' || type.endsWith('+json')) checkJson(method.input, message.toString());
  else if (type === 'application/proto' || enveloped) decodeBinary(method, message);
}

/** Connect GET: the message is in the query. */
export function checkQuery(method: Method, query: URLSearchParams): void {
  const message = query.get('message') ?? '';
  const bytes = query.get('base64') === '1' ? Buffer.from(message, 'base64url') : Buffer.from(message);
  if (query.get('encoding') === 'json') checkJson(method.input, bytes.toString());
  else decodeBinary(method, bytes);
}

function oneEnvelope(body: Buffer): Buffer {
  if (body.byteLength < envelopeHead || body.readUInt32BE(1) !== body.byteLength - envelopeHead) {
    throw new BrokerError('FIELD_INVALID', 'The body is not one enveloped message.');
  }
  if ((body[0]! & compressedFlag) !== 0) {
    throw new BrokerError('FIELD_INVALID', 'Send the message uncompressed.');
  }
  return body.subarray(envelopeHead);
}

function checkJson(desc: DescMessage, text: string): void {
  let value: JsonValue;
  try {
    value = JSON.parse(text) as JsonValue;
  } catch {
    throw new BrokerError('FIELD_INVALID', 'The body is not JSON.');
  }
  try {
    fromJson(desc, value, strictJson);
  } catch (thrown) {
    throw faultOf(desc, value, '') ?? new BrokerError('FIELD_INVALID', (thrown as Error).message);
  }
}

/** The innermost field that does not parse by itself. */
function faultOf(desc: DescMessage, value: JsonValue, path: string): BrokerError | undefined {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return path === '' ? undefined : fieldInvalid(path, 'must be an object.');
  }
  for (const [key, entry] of Object.entries(value as JsonObject)) {
    const field = desc.fields.find(({ jsonName, name }) => jsonName === key || name === key);
    const at = join(path, field?.name ?? key.slice(0, 64));
    if (field === undefined) return fieldInvalid(at, `is not a field of ${desc.name}.`);
    try {
      fromJson(desc, { [key]: entry }, strictJson);
    } catch {
      return nestedFault(field, entry, at) ?? fieldInvalid(at, `is not ${expected(field)}.`);
    }
  }
  return undefined;
}

function nestedFault(field: DescField, value: JsonValue, path: string): BrokerError | undefined {
  if (field.fieldKind === 'message' && !isWellKnown(field.message)) return faultOf(field.message, value, path);
  if (field.fieldKind !== 'list' || field.listKind !== 'message' || isWellKnown(field.message)) return undefined;
  if (!Array.isArray(value)) return undefined;
  for (const [index, entry] of value.entries()) {
    const fault = faultOf(field.message, entry, `${path}[${index}]`);
    if (fault !== undefined) return fault;
  }
  return undefined;
}

function expected(field: DescField): string {
  if (field.fieldKind === 'list') return 'a list of what it holds';
  if (field.fieldKind === 'map') return 'an object of what it holds';
  if (field.fieldKind === 'enum') return `a value of ${field.enum.name}`;
  if (field.fieldKind === 'message') {
    if (field.message.typeName === 'google.protobuf.Duration') return 'a duration such as "90s"';
    if (field.message.typeName === 'google.protobuf.Timestamp') return 'a time such as "2030-01-31T12:00:00Z"';
    return `a ${field.message.name}`;
  }
  return 'a value of its type';
}

/** Their JSON is not an object of their fields. */
function isWellKnown(desc: DescMessage): boolean {
  return desc.typeName.startsWith('google.protobuf.');
}

function join(path: string, name: string): string {
  return path === '' ? name : `${path}.${name}`;
}
