import type { DocumentChange } from '../domain/revision-diff.ts';
import { ChangeKind, type DocumentChange as ChangeMessage } from '../gen/leasehold/v1/policy_service_pb.js';
import { line, toned, type Tone } from './output.ts';
import { printable } from './printable.ts';

const kinds = {
  [ChangeKind.ADDED]: 'added',
  [ChangeKind.REMOVED]: 'removed',
  [ChangeKind.CHANGED]: 'changed',
} as const;

export function changesOf(messages: readonly ChangeMessage[]): DocumentChange[] {
  return messages.map(({ kind, name, rule, change, fields }) => ({
    kind,
    name,
    rule,
    change: change === ChangeKind.UNSPECIFIED ? 'changed' : kinds[change],
    fields: fields.map(({ path, before, after }) => ({ path, before, after })),
  }));
}

/** `~ Policy analyst, rule read` and below it field by field what it was and is. */
export function showChanges(changes: readonly DocumentChange[]): void {
  if (changes.length === 0) line('no difference');
  for (const { kind, name, rule, change, fields } of changes) {
    const [sign, tone] = signs[change];
    const what = printable(`${kind} ${name}${rule === '' ? '' : `, rule ${rule}`}`);
    line(toned(`${sign} ${what}`, tone));
    for (const { path, before, after } of fields) {
      const place = path === '' ? '' : `${path}: `;
      if (before !== '') line(toned(`    - ${printable(place + before)}`, 'bad'));
      if (after !== '') line(toned(`    + ${printable(place + after)}`, 'good'));
    }
  }
}

const signs: Record<DocumentChange['change'], [string, Tone]> = {
  added: ['+', 'good'],
  removed: ['-', 'bad'],
  changed: ['~', 'warn'],
};
