import { createHash } from 'node:crypto';
import type { PolicyRevision } from '../domain/policy.ts';
import type { AnyDocument } from './documents.ts';

/** One spelling for the same documents: keys sorted, no white space, documents by kind and name whatever file they came from. */
export function canonicalDocuments(documents: readonly AnyDocument[]): string {
  const key = (document: AnyDocument) => `${document.kind}/${document.metadata.name}`;
  return canonicalJson([...documents].sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0)));
}

export function digestOf(canonical: string): string {
  return `sha256:${createHash('sha256').update(canonical).digest('hex')}`;
}

function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  const fields = Object.entries(value)
    .filter(([, field]) => field !== undefined)
    .sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${fields.map(([name, field]) => `${JSON.stringify(name)}:${canonicalJson(field)}`).join(',')}}`;
}

const described = new WeakMap<PolicyRevision, string>();

export function remember(revision: PolicyRevision, canonical: string): PolicyRevision {
  described.set(revision, canonical);
  return revision;
}

/** The documents of a revision as canonical JSON: `compilePolicy(JSON.parse(…))` gives the same revision back. */
export function describeRevision(revision: PolicyRevision): string {
  const canonical = described.get(revision);
  if (canonical === undefined) throw new Error(`${revision.digest} was not compiled from documents`);
  return canonical;
}
