import { styleText } from 'node:util';
import { toJson, type DescMessage, type MessageShape } from '@bufbuild/protobuf';
import { timestampMs, type Timestamp } from '@bufbuild/protobuf/wkt';
import { printable } from './printable.ts';

export type Tone = 'good' | 'bad' | 'warn' | 'dim' | 'bold';
const styles = { good: 'green', bad: 'red', warn: 'yellow', dim: 'dim', bold: 'bold' } as const;

/** Colour on a terminal, none in a pipe, under NO_COLOR or on a dumb terminal (`styleText` looks at the stream). */
export function toned(text: string, tone: Tone | undefined): string {
  return tone === undefined ? text : styleText(styles[tone], text, { stream: process.stdout });
}

export function line(text = ''): void {
  process.stdout.write(`${text}\n`);
}

/** One protobuf message as one line of protobuf JSON, defaults included, so that a script can rely on every field. */
export function jsonLine<D extends DescMessage>(schema: D, message: MessageShape<D>): void {
  line(JSON.stringify(toJson(schema, message, { alwaysEmitImplicit: true })));
}

export interface Cell {
  text: string;
  tone?: Tone | undefined;
}

/** Aligned columns. Cells are padded before they are coloured: escape codes have no width. */
export function table(head: readonly string[], rows: readonly (readonly (Cell | string)[])[]): void {
  const cells = rows.map((row) => row.map((cell) => (typeof cell === 'string' ? { text: cell } : cell)));
  const clean = cells.map((row) => row.map((cell: Cell) => ({ ...cell, text: printable(cell.text) })));
  const widths = head.map((title, column) =>
    Math.max(title.length, ...clean.map((row) => row[column]?.text.length ?? 0)),
  );
  const pad = (text: string, column: number) => (column === head.length - 1 ? text : text.padEnd(widths[column]!));
  line(toned(head.map(pad).join('  '), 'bold'));
  for (const row of clean)
    line(
      row
        .map((cell, column) => toned(pad(cell.text, column), cell.tone))
        .join('  ')
        .trimEnd(),
    );
}

/** `name  value` lines; empty values are left out. */
export function fields(entries: readonly (readonly [string, Cell | string | undefined])[]): void {
  const shown = entries.filter(
    ([, value]) => value !== undefined && (typeof value === 'string' ? value : value.text) !== '',
  );
  const width = Math.max(0, ...shown.map(([name]) => name.length));
  for (const [name, value] of shown) {
    const cell = typeof value === 'string' ? { text: value } : value!;
    line(`${toned(name.padEnd(width), 'dim')}  ${toned(printable(cell.text), cell.tone)}`);
  }
}

/** `in 9m 30s`, `3h ago`, `now`. The two largest units are enough for a person. */
export function relative(time: Timestamp | undefined, now = Date.now()): string {
  if (time === undefined) return '';
  const distance = timestampMs(time) - now;
  const text = span(Math.abs(distance));
  if (text === '') return 'now';
  return distance > 0 ? `in ${text}` : `${text} ago`;
}

export function span(milliseconds: number): string {
  let rest = Math.round(milliseconds / 1000);
  const parts: string[] = [];
  for (const [unit, size] of [
    ['d', 86_400],
    ['h', 3_600],
    ['m', 60],
    ['s', 1],
  ] as const) {
    const count = Math.floor(rest / size);
    if (count > 0) parts.push(`${count}${unit}`);
    rest -= count * size;
  }
  return parts.slice(0, 2).join(' ');
}

/** Absolute and relative: `2026-01-02T03:04:05Z (in 9m)`. */
export function moment(time: Timestamp | undefined): string {
  return time === undefined ? '' : `${iso(time)} (${relative(time)})`;
}

export function iso(time: Timestamp): string {
  return new Date(timestampMs(time)).toISOString().replace(/\.\d{3}Z$/, 'Z');
}
