/**
 * Reads YAML as people and tools mostly write it: block maps and lists, one-line flow collections, one-line scalars,
 * comments. Whatever else there is in YAML, and whatever is wrong, gives undefined and is left to the library, which
 * reads every document alike (a test holds the two together) and takes ten times as long: a large estate's policy is
 * tens of thousands of lines, read at each start and each edit.
 */
export function parsePlainYaml(text: string): unknown[] | undefined {
  if (unusual.test(text)) return undefined;
  const lines: Line[] = [];
  const documents: unknown[] = [];
  try {
    for (let from = 0; from <= text.length;) {
      const newline = text.indexOf('\n', from);
      const end = newline === -1 ? text.length : newline;
      const raw = text.slice(from, end);
      from = end + 1;
      if (raw === '---') {
        flush(lines, documents);
        continue;
      }
      const indent = raw.search(/[^ ]/);
      if (indent === -1 || raw[indent] === '#') continue;
      // Markers with something behind them, ends of documents, directives.
      if (indent === 0 && /^(---|\.\.\.|%)/.test(raw)) return undefined;
      lines.push({ indent, text: raw.slice(indent) });
    }
    flush(lines, documents);
  } catch (error) {
    if (error === notPlain) return undefined;
    throw error;
  }
  return documents;
}

interface Line {
  indent: number;
  text: string;
}

// One for all, made here: it stands for a place to go back to, and says nothing.
const notPlain = new Error('not plain YAML');
// Tabs, carriage returns, control characters, and blanks that are not spaces.
const unusual = /[^\n\x20-\x7e\u00a1-\u167f\u2010-\u2027\u2030-\u205e\u20a0-\u20ff]/;
const maxDepth = 24;

function flush(lines: Line[], documents: unknown[]): void {
  if (lines.length === 0) return;
  const reader: Reader = { lines, at: 0 };
  const value = block(reader, lines[0]!.indent, 0);
  if (reader.at < lines.length) throw notPlain;
  documents.push(value);
  lines.length = 0;
}

interface Reader {
  lines: Line[];
  at: number;
}

function block(reader: Reader, indent: number, depth: number): unknown {
  if (depth > maxDepth) throw notPlain;
  const { text } = reader.lines[reader.at]!;
  return text.startsWith('- ') ? blockList(reader, indent, depth) : blockMap(reader, indent, depth);
}

function blockList(reader: Reader, indent: number, depth: number): unknown[] {
  const list: unknown[] = [];
  for (let line = reader.lines[reader.at]; line?.indent === indent; line = reader.lines[reader.at]) {
    if (!line.text.startsWith('- ')) break;
    const rest = line.text.slice(2).replace(/^ +/, '');
    if (rest === '' || rest.startsWith('- ') || rest.startsWith('#')) throw notPlain;
    if (keyEnd(rest) > 0) {
      // `- name: x` opens a map whose further keys stand below `name`.
      const inner = indent + line.text.length - rest.length;
      reader.lines[reader.at] = { indent: inner, text: rest };
      list.push(blockMap(reader, inner, depth + 1));
    } else {
      reader.at++;
      list.push(oneLine(rest));
    }
    // What is deeper now would go on with the entry above.
    if ((reader.lines[reader.at]?.indent ?? 0) > indent) throw notPlain;
  }
  return list;
}

function blockMap(reader: Reader, indent: number, depth: number): Record<string, unknown> {
  if (depth > maxDepth) throw notPlain;
  const map: Record<string, unknown> = {};
  for (let line = reader.lines[reader.at]; line?.indent === indent; line = reader.lines[reader.at]) {
    if (line.text.startsWith('- ')) break;
    const end = keyEnd(line.text);
    if (end <= 0) throw notPlain;
    const key = line.text.slice(0, end);
    if (Object.hasOwn(map, key) || key === '__proto__') throw notPlain;
    const rest = line.text.slice(end + 1).replace(/^ +/, '');
    reader.at++;
    const next = reader.lines[reader.at];
    if (rest === '' || rest.startsWith('#')) {
      const isNested =
        next !== undefined && (next.indent > indent || (next.indent === indent && next.text.startsWith('- ')));
      // A key without a value is null to YAML, and most likely unfinished.
      if (!isNested) throw notPlain;
      map[key] = block(reader, next.indent, depth + 1);
    } else map[key] = oneLine(rest);
    if ((reader.lines[reader.at]?.indent ?? 0) > indent) throw notPlain;
  }
  return map;
}

/** Where the colon after a plain key stands; 0 or less when the line does not begin with one. */
function keyEnd(text: string): number {
  const match = /^[A-Za-z_][A-Za-z0-9_.-]*(?=:(?: |$))/.exec(text);
  return match === null || words.has(match[0]) ? -1 : match[0].length;
}

// YAML 1.2.2 §10.3.2, and what version 1.1 took for truth: nobody means a text by these.
const words = new Set(
  ['null', 'true', 'false', 'yes', 'no', 'on', 'off', 'y', 'n'].flatMap((word) => [
    word,
    word.toUpperCase(),
    word.charAt(0).toUpperCase() + word.slice(1),
  ]),
);

/** The value of the rest of a line in a block, with a comment behind it or not. */
function oneLine(text: string): unknown {
  const first = text[0]!;
  if (first === '[' || first === '{' || first === "'" || first === '"') {
    const flow: Flow = { text, at: 0 };
    const value = flowValue(flow, 0);
    if (!/^( *$| +#)/.test(text.slice(flow.at))) throw notPlain;
    return value;
  }
  const comment = text.indexOf(' #');
  const scalar = (comment === -1 ? text : text.slice(0, comment)).replace(/ +$/, '');
  if (scalar.includes(': ') || scalar.endsWith(':')) throw notPlain;
  return plain(scalar);
}

function plain(scalar: string): string | number | boolean {
  if (scalar === 'true') return true;
  if (scalar === 'false') return false;
  if (words.has(scalar)) throw notPlain;
  // None of these can be a number, a date being text in YAML 1.2.
  if (/^[A-Za-z_/(]/.test(scalar) || /^(\d+(d|h|m|s|ms))+$/.test(scalar) || /^\d{4}-\d\d-\d\d$/.test(scalar))
    return scalar;
  if (/^(0|-?[1-9]\d{0,14})$/.test(scalar)) return Number(scalar);
  throw notPlain;
}

interface Flow {
  text: string;
  at: number;
}

function flowValue(flow: Flow, depth: number): unknown {
  if (depth > maxDepth) throw notPlain;
  const { text } = flow;
  const first = text[flow.at];
  if (first === '[') return flowList(flow, depth);
  if (first === '{') return flowMap(flow, depth);
  if (first === "'") return singleQuoted(flow);
  if (first === '"') return doubleQuoted(flow);
  // A colon is part of a text when something other than a blank or an end follows it: spiffe://acme.test
  const match = /^(?:[^,[\]{}#:]|:(?=[^\s,[\]{}]))+/.exec(text.slice(flow.at));
  if (match === null || depth === 0) throw notPlain;
  flow.at += match[0].length;
  return plain(match[0].replace(/ +$/, ''));
}

function flowList(flow: Flow, depth: number): unknown[] {
  const list: unknown[] = [];
  flow.at++;
  skip(flow);
  if (flow.text[flow.at] === ']') {
    flow.at++;
    return list;
  }
  for (;;) {
    list.push(flowValue(flow, depth + 1));
    skip(flow);
    const end = flow.text[flow.at++];
    if (end === ']') return list;
    if (end !== ',') throw notPlain;
    skip(flow);
  }
}

function flowMap(flow: Flow, depth: number): Record<string, unknown> {
  const map: Record<string, unknown> = {};
  flow.at++;
  skip(flow);
  if (flow.text[flow.at] === '}') {
    flow.at++;
    return map;
  }
  for (;;) {
    const key = /^[A-Za-z_][A-Za-z0-9_.-]*(?=: )/.exec(flow.text.slice(flow.at))?.[0];
    if (key === undefined || words.has(key) || key === '__proto__' || Object.hasOwn(map, key)) throw notPlain;
    flow.at += key.length + 1;
    skip(flow);
    map[key] = flowValue(flow, depth + 1);
    skip(flow);
    const end = flow.text[flow.at++];
    if (end === '}') return map;
    if (end !== ',') throw notPlain;
    skip(flow);
  }
}

function singleQuoted(flow: Flow): string {
  const match = /^'((?:[^']|'')*)'(?!')/.exec(flow.text.slice(flow.at));
  if (match === null) throw notPlain;
  flow.at += match[0].length;
  return match[1]!.replaceAll("''", "'");
}

/** Without escapes; those are the library's. */
function doubleQuoted(flow: Flow): string {
  const match = /^"([^"\\]*)"/.exec(flow.text.slice(flow.at));
  if (match === null) throw notPlain;
  flow.at += match[0].length;
  return match[1]!;
}

function skip(flow: Flow): void {
  while (flow.text[flow.at] === ' ') flow.at++;
}
