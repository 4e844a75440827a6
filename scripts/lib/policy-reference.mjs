// The reference part of docs/policies.md, made from the schemas that check the documents.
import { readFileSync } from 'node:fs';

const kinds = ['agent', 'tool', 'policy', 'definitions', 'defaults', 'policytest'];
const tiers = ['read', 'write', 'execute'];
const begin = '<!-- made from schemas/ by scripts/policy-reference.mjs: edit there -->';
const end = '<!-- end of what is made -->';

export function readSchemas() {
  return kinds.map((kind) =>
    JSON.parse(readFileSync(new URL(`../../schemas/${kind}.schema.json`, import.meta.url), 'utf8')),
  );
}

/** Every field of every kind, by its path: `spec.rules[].obligations.ttl`. What all kinds share stands in `metadata`. */
export function fieldsOf(schemas) {
  const common = new Map();
  const byKind = schemas.map((schema) => {
    const fields = new Map();
    for (const field of walk(schema.properties.spec, 'spec', true)) fields.set(field.path, field);
    for (const field of walk(schema.properties.metadata, 'metadata', true)) {
      const known = common.get(field.path);
      common.set(field.path, { ...field, kinds: [...(known?.kinds ?? []), kindOf(schema)] });
    }
    return { kind: kindOf(schema), description: schema.description, fields: [...fields.values()].slice(1) };
  });
  return { common: [...common.values()].slice(1), byKind };
}

function kindOf(schema) {
  return schema.properties.kind.const;
}

function* walk(schema, path, required) {
  yield { path, schema, required };
  const properties = schema.properties ?? {};
  const children = tiers.every((tier) => properties[tier] !== undefined) ? asOne(properties) : properties;
  for (const [name, child] of Object.entries(children)) {
    yield* walk(child, `${path}.${name}`, schema.required?.includes(name) === true);
  }
  if (schema.items?.properties !== undefined) yield* walk(schema.items, `${path}[]`, false);
  const values = schema.additionalProperties;
  if (values?.properties !== undefined) yield* walk(values, `${path}.<name>`, false);
}

/** The three tiers are alike but for what they are for: told once. */
function asOne(properties) {
  const [first, ...others] = tiers.map((tier) => ({ ...properties[tier], description: '' }));
  if (others.some((other) => JSON.stringify(other) !== JSON.stringify(first))) {
    throw new Error('the schemas of the tiers differ: the reference tells them as one');
  }
  const description = tiers.map((tier) => `${tier}: ${properties[tier].description}`).join(' ');
  return { '<tier>': { ...first, description } };
}

export function renderReference(schemas) {
  const { common, byKind } = fieldsOf(schemas);
  const lines = [begin, ''];
  const list = (fields) => {
    for (const { path, schema, required, kinds: of } of fields) {
      if (schema.description === undefined) continue;
      const only = of === undefined || of.length === byKind.length ? [] : [`${of.join(', ')} only`];
      const notes = [...only, ...(required ? ['required'] : []), valuesOf(schema)].filter((note) => note !== '');
      const noted = notes.length === 0 ? '' : ` (${notes.join(', ')})`;
      lines.push(`- \`${path}\`${noted}: ${escaped(schema.description)}`);
    }
    lines.push('');
  };
  lines.push('### Every document', '');
  lines.push('`apiVersion: leasehold.dev/v1`, `kind`, and:', '');
  list(common);
  for (const { kind, description, fields } of byKind) {
    lines.push(`### ${kind}`, '', description, '');
    list(fields);
  }
  return [...lines, end].join('\n');
}

/** The text with its reference part replaced. */
export function withReference(text, reference) {
  const [from, to] = [text.indexOf(begin), text.indexOf(end)];
  if (from < 0 || to < from) throw new Error('the text has no place for the reference');
  return text.slice(0, from) + reference + text.slice(to + end.length);
}

function escaped(text) {
  return text.replace(/[<*]/g, '\\$&').replaceAll('\n', ' ');
}

function valuesOf(schema) {
  const duration = schema['x-duration'];
  if (duration !== undefined) return `duration, ${duration.minimum} to ${duration.maximum}`;
  if (schema.enum !== undefined) return schema.enum.map((value) => `\`${value}\``).join(' ');
  if (schema.format === 'date') return 'date';
  const type = Array.isArray(schema.type) ? schema.type.join(' or ') : (schema.type ?? '');
  if (type === 'array') return schema.items?.enum === undefined ? 'list' : `list of ${valuesOf(schema.items)}`;
  if (type === 'integer' && schema.maximum !== undefined) return `${schema.minimum} to ${schema.maximum}`;
  return { string: 'text', boolean: 'true or false', object: '' }[type] ?? type;
}
