import { quote } from '../config/schema.ts';
import type { SourceDocument } from '../config/yaml-document.ts';
import type { Report } from './check-tool.ts';
import type { DefaultsDocument, DefinitionsDocument } from './documents.ts';
import { isTimeZone } from './wall-clock.ts';

type Of<T> = readonly { source: SourceDocument; document: T }[];

export interface Definitions {
  conditions: Map<string, string>;
  lists: Record<string, readonly string[]>;
  /** Where each condition stands. */
  places: Map<string, SourceDocument>;
}

/** Names of conditions and lists are one space for the whole directory, whichever document defines them. */
export function gatherDefinitions(report: Report, all: Of<DefinitionsDocument>): Definitions {
  const conditions = new Map<string, string>();
  const lists: Record<string, readonly string[]> = {};
  const places = new Map<string, SourceDocument>();
  const listPlaces = new Map<string, SourceDocument>();
  const taken = (source: SourceDocument, kind: 'conditions' | 'lists', name: string, first: SourceDocument) => {
    const at = first.atKey(['spec', kind, name]);
    const what = kind === 'conditions' ? 'condition' : 'list';
    const where = `see ${first.file}:${at.line}:${at.column}`;
    report(source, ['spec', kind, name], `there is a ${what} ${quote(name)} already`, where);
  };
  for (const { source, document } of all) {
    for (const [name, text] of Object.entries(document.spec.conditions ?? {})) {
      const first = places.get(name);
      if (first !== undefined) taken(source, 'conditions', name, first);
      else {
        conditions.set(name, text);
        places.set(name, source);
      }
    }
    for (const [name, entries] of Object.entries(document.spec.lists ?? {})) {
      const first = listPlaces.get(name);
      if (first !== undefined) taken(source, 'lists', name, first);
      else {
        lists[name] = entries;
        listPlaces.set(name, source);
      }
    }
  }
  return { conditions, lists, places };
}

/** The one document of what holds for the organisation; undefined when there is none. */
export function theDefaults(report: Report, all: Of<DefaultsDocument>): DefaultsDocument | undefined {
  const [first, ...others] = all;
  if (first === undefined) return undefined;
  for (const { source } of others) {
    const at = first.source.at(['metadata', 'name']);
    const where = `put both into ${first.source.file}:${at.line}:${at.column}`;
    report(source, ['metadata', 'name'], 'there is a Defaults document already, and one directory has one', where);
  }
  checkTimeZone(report, first.source, ['spec', 'timeZone'], first.document.spec.timeZone);
  return first.document;
}

export function checkTimeZone(
  report: Report,
  source: SourceDocument,
  path: readonly (string | number)[],
  timeZone: string | undefined,
): void {
  if (timeZone === undefined || isTimeZone(timeZone)) return;
  report(source, path, `there is no time zone ${quote(timeZone)}`, 'name a place, such as Europe/Berlin, or UTC');
}
