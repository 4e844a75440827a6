export interface FieldChange {
  /** `obligations.ttl`; empty for the whole. */
  path: string;
  /** JSON; empty when it is not there. */
  before: string;
  after: string;
}

export interface DocumentChange {
  kind: string;
  name: string;
  /** Rule within a Policy; empty for the document itself. */
  rule: string;
  change: 'added' | 'removed' | 'changed';
  fields: FieldChange[];
}

type Value = unknown;
type Fields = Readonly<Record<string, Value>>;

/** What differs between two sets of documents, by kind, name and rule. Documents are as the loader has read them. */
export function diffDocuments(before: readonly Value[], after: readonly Value[]): DocumentChange[] {
  const [a, b] = [parts(before), parts(after)];
  const changes: DocumentChange[] = [];
  for (const key of [...new Set([...a.keys(), ...b.keys()])].sort()) {
    const [old, fresh] = [a.get(key), b.get(key)];
    const { kind, name, rule } = (fresh ?? old)!;
    if (old === undefined) {
      changes.push({
        kind,
        name,
        rule,
        change: 'added',
        fields: [{ path: '', before: '', after: json(fresh!.value) }],
      });
    } else if (fresh === undefined) {
      changes.push({ kind, name, rule, change: 'removed', fields: [{ path: '', before: json(old.value), after: '' }] });
    } else {
      const fields: FieldChange[] = [];
      compare(old.value, fresh.value, '', fields);
      if (fields.length > 0) changes.push({ kind, name, rule, change: 'changed', fields });
    }
  }
  return changes;
}

interface Part {
  kind: string;
  name: string;
  rule: string;
  value: Value;
}

/** Rules of a Policy stand for themselves, so that one that moved or is new hides nothing about the others. */
function parts(documents: readonly Value[]): Map<string, Part> {
  const found = new Map<string, Part>();
  const add = (part: Part) => found.set([part.kind, part.name, part.rule].join('\n'), part);
  for (const document of documents) {
    const { kind, metadata, spec } = document as { kind: string; metadata?: { name?: string }; spec?: Fields };
    const name = metadata?.name ?? '';
    const rules = spec?.['rules'];
    if (kind !== 'Policy' || !Array.isArray(rules)) {
      add({ kind, name, rule: '', value: { metadata, spec } });
      continue;
    }
    add({ kind, name, rule: '', value: { metadata, spec: { ...spec, rules: undefined } } });
    for (const rule of rules as ({ name?: string } & Fields)[]) {
      add({ kind, name, rule: rule.name ?? '', value: { ...rule, name: undefined } });
    }
  }
  return found;
}

function compare(before: Value, after: Value, path: string, changes: FieldChange[]): void {
  if (isMap(before) && isMap(after)) {
    for (const key of [...new Set([...Object.keys(before), ...Object.keys(after)])].sort()) {
      compare(before[key], after[key], path === '' ? key : `${path}.${key}`, changes);
    }
    return;
  }
  const [old, fresh] = [json(before), json(after)];
  if (old !== fresh) changes.push({ path, before: old, after: fresh });
}

function isMap(value: Value): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function json(value: Value): string {
  return value === undefined ? '' : JSON.stringify(value);
}
