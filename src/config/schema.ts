import { readFileSync } from 'node:fs';
import { Ajv } from 'ajv';
import type { ErrorObject, ValidateFunction } from 'ajv';
import ajvFormats from 'ajv-formats';
import { formatDuration, parseDuration } from './duration.ts';
import type { Issue } from './issue.ts';
import { suggestion } from './suggest.ts';
import type { FieldPath, SourceDocument } from './yaml-document.ts';

type SchemaName = 'config' | 'agent' | 'tool' | 'policy' | 'definitions' | 'defaults' | 'policytest';
type Node = Record<string, unknown>;

const cache = new Map<SchemaName, ValidateFunction>();

/**
 * Our JSON Schemas carry three words of their own, which editors pass over: `x-duration` (bounds of a duration),
 * `x-message` (what a pattern means, in words) and `x-hint` (what to do instead).
 */
function validator(name: SchemaName): ValidateFunction {
  const known = cache.get(name);
  if (known !== undefined) return known;
  const ajv = new Ajv({
    allErrors: true,
    verbose: true,
    strict: true,
    strictRequired: false,
    allowUnionTypes: true,
    useDefaults: true,
  });
  ajvFormats.default(ajv, ['date']);
  ajv.addKeyword('x-message').addKeyword('x-hint');
  ajv.addKeyword({
    keyword: 'x-duration',
    type: 'string',
    schemaType: 'object',
    validate: (bounds: DurationBounds, text: string) => durationFault(bounds, text) === undefined,
  });
  const compiled = ajv.compile(
    JSON.parse(readFileSync(new URL(`../../schemas/${name}.schema.json`, import.meta.url), 'utf8')) as Node,
  );
  cache.set(name, compiled);
  return compiled;
}

const durationHint = 'write it like 30s, 10m, 1h30m or 7d';

interface DurationBounds {
  minimum: string;
  maximum: string;
}

function durationFault(bounds: DurationBounds, text: string): { message: string; hint?: string } | undefined {
  const value = parseDuration(text);
  if (value === undefined) {
    return { message: `${quote(text)} is not a duration`, hint: durationHint };
  }
  if (value < parseDuration(bounds.minimum)! || value > parseDuration(bounds.maximum)!) {
    return { message: `${formatDuration(value)} is outside ${bounds.minimum} to ${bounds.maximum}` };
  }
  return undefined;
}

/** Checks a document's shape, fills in defaults, and reports every mistake at its own place. */
export function validateShape(name: SchemaName, document: SourceDocument): Issue[] {
  const validate = validator(name);
  if (validate(document.value)) return [];
  const issues: Issue[] = [];
  for (const error of validate.errors ?? []) {
    const issue = toIssue(document, error);
    // One place and one sentence per mistake: the branches of a choice would each report the same thing again.
    const seen = issues.some((other) => other.path === issue?.path && other.message === issue.message);
    if (issue !== undefined && !seen) issues.push(issue);
  }
  return issues;
}

function toIssue(document: SourceDocument, error: ErrorObject): Issue | undefined {
  const path = fromPointer(error.instancePath, document.value);
  const schema = (error.parentSchema ?? {}) as Node;
  const params = error.params as Record<string, unknown>;
  const hint = typeof schema['x-hint'] === 'string' ? schema['x-hint'] : usualHint(error, schema);
  const make = (message: string, hinted = hint, at = document.at(path), field = path): Issue => ({
    file: document.file,
    ...at,
    path: formatPath(field),
    message,
    ...(hinted === undefined ? {} : { hint: hinted }),
  });

  // What the branches of a choice say is summed up by the choice itself.
  if (error.schemaPath.includes('/oneOf/')) return undefined;
  if (error.propertyName !== undefined && error.keyword !== 'propertyNames') return undefined;
  switch (error.keyword) {
    case 'additionalProperties': {
      const key = String(params['additionalProperty']);
      const fields = Object.keys((schema['properties'] ?? {}) as Node);
      const where = [...path, key];
      const secret = secretHint(key, fields);
      if (secret !== undefined)
        return make('a secret may not be written in this file', secret, document.atKey(where), where);
      return make(`unknown field ${quote(key)}`, suggestion(key, fields, 'fields'), document.atKey(where), where);
    }
    case 'required': {
      const key = String(params['missingProperty']);
      const property = ((schema['properties'] ?? {}) as Record<string, Node>)[key];
      const description = property?.['description'];
      const what = typeof description === 'string' ? ` ${firstSentence(description)}` : '';
      return make(`${quote(key)} is missing`, `add ${key}:${what}`);
    }
    case 'oneOf': {
      if (typeof schema['x-message'] === 'string') return make(schema['x-message']);
      const choices = (error.schema as { required: string[] }[]).map((branch) => branch.required[0]!);
      return make(`needs exactly one of ${choices.join(', ')}`);
    }
    case 'x-duration': {
      const fault = durationFault(error.schema as DurationBounds, error.data as string);
      return make(fault?.message ?? 'is not a duration', fault?.hint ?? hint);
    }
    case 'type': {
      const wanted = [params['type']].flat().join(' or ');
      return make(`must be ${article(wanted)}, not ${kindOf(error.data)}`);
    }
    case 'enum': {
      const allowed = (params['allowedValues'] as unknown[]).map(String);
      const given = typeof error.data === 'string' ? error.data : undefined;
      return make(
        `must be one of ${allowed.join(', ')}`,
        (given === undefined ? undefined : closeOnly(given, allowed)) ?? hint,
      );
    }
    case 'const':
      return make(`must be ${quote(String(params['allowedValue']))}`);
    case 'pattern':
      return make(
        typeof schema['x-message'] === 'string' ? schema['x-message'] : 'has characters that are not allowed here',
      );
    case 'propertyNames': {
      const where = [...path, String(params['propertyName'])];
      const names = (schema['propertyNames'] ?? {}) as Node;
      return make(
        `${quote(String(params['propertyName']))} is not a name: ${String(names['x-message'] ?? 'it has characters that are not allowed')}`,
        'rename it',
        document.atKey(where),
        where,
      );
    }
    case 'format':
      return make(`must be a ${String(params['format'])} such as 2026-12-31`, 'year, month and day of a real day');
    case 'minItems':
    case 'minProperties':
      return make(
        `must have at least ${String(params['limit'])} ${Number(params['limit']) === 1 ? 'entry' : 'entries'}`,
      );
    case 'maxItems':
    case 'maxProperties':
      return make(`must have at most ${String(params['limit'])} entries`);
    case 'uniqueItems': {
      const where = [...path, Number(params['i'])];
      return make('stands in this list twice', 'remove one of the two', document.at(where), where);
    }
    case 'minLength':
      return make('must not be empty');
    case 'maxLength':
      return make(`must be at most ${String(params['limit'])} characters long`);
    case 'minimum':
      return make(`must be at least ${String(params['limit'])}`);
    case 'maximum':
      return make(`must be at most ${String(params['limit'])}`);
    default:
      return make(error.message ?? 'is not valid');
  }
}

/** What to do, where the schema has no words of its own for it. */
function usualHint({ keyword, data }: ErrorObject, schema: Node): string {
  const { description } = schema;
  const meaning = typeof description === 'string' ? `it means: ${firstSentence(description)}` : 'mend or remove it';
  switch (keyword) {
    case 'type':
      if ('x-duration' in schema) return durationHint;
      return ['number', 'boolean'].includes(typeof data) && schema['type'] === 'string' ? 'put it in quotes' : meaning;
    case 'const':
      return 'write it so';
    case 'enum':
      return 'take one of these';
    case 'oneOf':
      return 'say one of them, and only one';
    case 'pattern':
      return 'write it in that form';
    case 'minItems':
      return 'name what it needs';
    case 'minProperties':
    case 'minLength':
      return 'fill it in, or leave it out';
    case 'maxItems':
    case 'maxProperties':
      return 'split it up';
    case 'maxLength':
      return 'shorten it';
    default:
      return meaning;
  }
}

/** `password: hunter2` gets told where secrets come from, not that the field is unknown. */
function secretHint(key: string, fields: readonly string[]): string | undefined {
  if (!/^(password|passwd|secret|token|sealingKey|privateKey|key)$/i.test(key)) return undefined;
  const sources = fields.filter((field) => /^(password|sealingKey|url|key)(File|Env)$/.test(field));
  return sources.length === 0 ? undefined : `use ${sources.join(' or ')}`;
}

function closeOnly(given: string, allowed: readonly string[]): string | undefined {
  const text = suggestion(given, allowed);
  return text?.startsWith('did you mean') ? text : undefined;
}

function fromPointer(pointer: string, root: unknown): FieldPath {
  const path: (string | number)[] = [];
  let value = root;
  for (const step of pointer.split('/').slice(1)) {
    const key = step.replaceAll('~1', '/').replaceAll('~0', '~');
    path.push(Array.isArray(value) ? Number(key) : key);
    value = (value as Node | undefined)?.[key];
  }
  return path;
}

export function formatPath(path: FieldPath): string {
  return path.reduce<string>((text, step) => {
    if (typeof step === 'number') return `${text}[${step}]`;
    const plain = /^[A-Za-z_][A-Za-z0-9_-]*$/.test(step) ? step : quote(step);
    return text === '' ? plain : `${text}.${plain}`;
  }, '');
}

/** For messages: quoted, without control characters, and never more than a terminal line of it. */
export function quote(text: string): string {
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text);
}

function article(type: string): string {
  return type === 'object'
    ? 'a map of fields'
    : type === 'array'
      ? 'a list'
      : type === 'integer'
        ? 'a whole number'
        : `a ${type}`;
}

function kindOf(value: unknown): string {
  if (value === null) return 'empty';
  if (Array.isArray(value)) return 'a list';
  return typeof value === 'object' ? 'a map' : `a ${typeof value}`;
}

function firstSentence(text: string): string {
  const end = text.search(/[.:;](\s|$)/);
  const sentence = end === -1 ? text : text.slice(0, end);
  return /^[A-Z][a-z ]/.test(sentence) ? sentence.charAt(0).toLowerCase() + sentence.slice(1) : sentence;
}
