/**
 * Maps an offset in a text value to an offset in the YAML that spells it, so that an error inside an expression is
 * shown at its own line and column. Undefined when the spelling changes the text in a way that cannot be followed
 * (escapes, blank lines in a folded text); the start of the value is then the best that can be said.
 */
export function scalarOffsets(raw: string, value: string, type?: string): ((offset: number) => number) | undefined {
  const block = type === 'BLOCK_LITERAL' || type === 'BLOCK_FOLDED';
  const quoted = type === 'QUOTE_SINGLE' || type === 'QUOTE_DOUBLE';
  const start = block ? raw.indexOf('\n') + 1 : quoted ? 1 : 0;
  const end = quoted ? raw.length - 1 : raw.length;
  const firstLine = block
    ? raw
        .slice(start)
        .split('\n')
        .find((line) => line.trim() !== '')
    : undefined;
  const indent = firstLine === undefined ? undefined : firstLine.length - firstLine.trimStart().length;

  const places: number[] = [];
  let spelled = '';
  let place = start;
  for (const [index, line] of raw.slice(start, end).split('\n').entries()) {
    const drop = indent ?? (index === 0 ? 0 : line.length - line.trimStart().length);
    const kept = line.slice(Math.min(drop, line.length));
    for (let i = 0; i < kept.length; i++) places.push(place + drop + i);
    places.push(place + line.length);
    spelled += `${kept}\n`;
    place += line.length + 1;
  }

  for (let i = 0; i < value.length; i++) {
    const same = spelled[i] === value[i] || (spelled[i] === '\n' && value[i] === ' ');
    if (!same) return undefined;
  }
  return (offset) => places[Math.min(offset, places.length - 1)] ?? start;
}
