import { isAlias, isMap, isScalar, isSeq, Lexer, LineCounter, parseAllDocuments } from 'yaml';
import type { Document, ParsedNode } from 'yaml';
import type { Issue } from './issue.ts';
import { parsePlainYaml } from './plain-yaml.ts';
import { scalarOffsets } from './scalar-offsets.ts';

export type FieldPath = readonly (string | number)[];
export interface Position {
  line: number;
  column: number;
}

/** One document of a file: its plain value, and where in the file each part of it stands. */
export interface SourceDocument {
  file: string;
  value: unknown;
  /** Where the value of a field starts; of its nearest present ancestor when the field is absent. */
  at(path: FieldPath): Position;
  /** Where the name of a field starts. */
  atKey(path: FieldPath): Position;
  /** Where the character `offset` of a text value stands, as far as its quoting lets that be told. */
  within(path: FieldPath, offset: number): Position;
}

export const maxNesting = 32;

const yamlHints: Partial<Record<string, string>> = {
  BAD_INDENT: 'close what is open there, and align it with the lines around it',
  BLOCK_IN_FLOW: 'within [ ] and { } there are no lines that begin with a dash',
  DUPLICATE_KEY: 'remove one of the two',
  KEY_OVER_1024_CHARS: 'look for a quote that is not closed',
  MISSING_CHAR: 'look for a quote or bracket that is not closed',
  TAB_AS_INDENT: 'indent with spaces',
  TAG_RESOLVE_FAILED: 'leave the tag (!…) out',
};

/** Parses a file of one or more YAML documents; all syntax errors at once, each with its place. */
export function parseYaml(file: string, text: string): { documents: SourceDocument[]; issues: Issue[] } {
  const values = parsePlainYaml(text);
  if (values === undefined) return parseAnyYaml(file, text);
  // Places are asked for only when something is wrong.
  let placed: SourceDocument[] | undefined;
  const documents = values.map((value, index): SourceDocument => {
    const place = () => (placed ??= parseAnyYaml(file, text).documents)[index]!;
    return {
      file,
      value,
      at: (path) => place().at(path),
      atKey: (path) => place().atKey(path),
      within: (path, offset) => place().within(path, offset),
    };
  });
  return { documents, issues: [] };
}

/** As the library reads it, whatever YAML it is. */
export function parseAnyYaml(file: string, text: string): { documents: SourceDocument[]; issues: Issue[] } {
  const lines = new LineCounter();
  const deep = tooDeep(text);
  if (deep !== undefined) {
    lines.addNewLine(0);
    for (let i = text.indexOf('\n'); i !== -1 && i < deep; i = text.indexOf('\n', i + 1)) lines.addNewLine(i + 1);
    const { line, col } = lines.linePos(deep);
    return {
      documents: [],
      issues: [
        {
          file,
          line,
          column: col,
          path: '',
          message: `nested too deeply (limit ${maxNesting} levels)`,
          hint: 'look for a bracket that is not closed',
        },
      ],
    };
  }

  const parsed = parseAllDocuments(text, { lineCounter: lines, prettyErrors: false, uniqueKeys: true, strict: true });
  const documents: SourceDocument[] = [];
  const issues: Issue[] = [];
  const position = (offset: number): Position => {
    const { line, col } = lines.linePos(Math.min(Math.max(offset, 0), text.length));
    return { line: Math.max(line, 1), column: Math.max(col, 1) };
  };
  for (const document of Array.isArray(parsed) ? parsed : []) {
    // An unknown tag is only a warning to the parser, but its value would be something else than what the writer meant.
    const faults = [...document.errors, ...document.warnings];
    for (const fault of faults) {
      issues.push({
        file,
        ...position(fault.pos[0]),
        path: '',
        message: `not valid YAML: ${lowerFirst(fault.message)}`,
        hint: yamlHints[fault.code] ?? 'look at the quotes, brackets and indentation there',
      });
    }
    if (faults.length > 0 || document.contents === null) continue;
    let value: unknown;
    try {
      value = document.toJS({ maxAliasCount: 100 });
    } catch {
      issues.push({
        file,
        ...position(document.range[0]),
        path: '',
        message: 'uses too many aliases',
        hint: 'write the values out',
      });
      continue;
    }
    // `---` with nothing but comments after it is not a document that anybody meant.
    if (value !== null) documents.push(sourceDocument(file, text, document, value, position));
  }
  return { documents, issues };
}

function sourceDocument(
  file: string,
  text: string,
  document: Document.Parsed<ParsedNode>,
  value: unknown,
  position: (offset: number) => Position,
): SourceDocument {
  const start = (node: unknown): number | undefined =>
    typeof node === 'object' && node !== null && 'range' in node && Array.isArray(node.range)
      ? (node.range[0] as number)
      : undefined;

  const walk = (path: FieldPath) => {
    let node: unknown = document.contents;
    let keyOffset = start(node) ?? 0;
    let complete = true;
    for (const step of path) {
      if (isAlias(node)) node = node.resolve(document);
      let next: unknown;
      if (isMap(node)) {
        const pair = node.items.find((item) => isScalar(item.key) && String(item.key.value) === String(step));
        if (pair !== undefined) {
          keyOffset = start(pair.key) ?? keyOffset;
          // `key:` without a value has a node of no width after the colon; the key is the better place to point at.
          next = pair.value ?? pair.key;
        }
      } else if (isSeq(node)) {
        next = node.items[Number(step)];
        keyOffset = start(next) ?? keyOffset;
      }
      if (next === undefined) {
        complete = false;
        break;
      }
      node = next;
    }
    return { node, keyOffset, complete };
  };

  return {
    file,
    value,
    at: (path) => {
      const { node, keyOffset, complete } = walk(path);
      const empty = isScalar(node) && node.value === null;
      return position(complete && !isMap(node) && !isSeq(node) && !empty ? (start(node) ?? keyOffset) : keyOffset);
    },
    atKey: (path) => position(walk(path).keyOffset),
    within: (path, offset) => {
      const { node, keyOffset, complete } = walk(path);
      if (!complete || !isScalar(node) || typeof node.value !== 'string' || !node.range) return position(keyOffset);
      const offsets = scalarOffsets(text.slice(node.range[0], node.range[1]), node.value, node.type);
      return position(node.range[0] + (offsets?.(offset) ?? 0));
    },
  };
}

/**
 * Where the text is nested deeper than any of our documents, if it is. Looked for before parsing, with the lexer alone:
 * the parser recurses, and some thousand open brackets make it run the whole process out of stack or memory.
 */
function tooDeep(text: string): number | undefined {
  let offset = 0;
  let lineStart = 0;
  let flow = 0;
  for (const token of new Lexer().lex(text)) {
    // The lexer's own marks: end of stream, start of document, scalar follows.
    if (token === '\x02' || token === '\x18' || token === '\x1f') continue;
    if (token === '[' || token === '{') flow++;
    else if (token === ']' || token === '}') flow--;
    // Outside brackets each level needs at least one column, so an indicator's column bounds the depth.
    const block =
      (token === '-' || token === ':' || token === '?') && flow === 0 && offset - lineStart > maxNesting * 8;
    if (flow > maxNesting || block) return offset;
    offset += token.length;
    const newline = token.lastIndexOf('\n');
    if (newline !== -1) lineStart = offset - (token.length - newline - 1);
  }
  return undefined;
}

function lowerFirst(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1);
}
