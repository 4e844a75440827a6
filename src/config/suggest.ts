/** The candidate that the writer most likely meant, when one is close enough to be worth saying. */
export function nearest(word: string, candidates: Iterable<string>): string | undefined {
  // Longer words are never names here, and the distance is quadratic.
  if (word.length > 64) return undefined;
  const limit = Math.max(1, Math.floor(word.length / 3));
  let best: string | undefined;
  let bestDistance = limit + 1;
  for (const candidate of candidates) {
    if (candidate === word || Math.abs(candidate.length - word.length) >= bestDistance) continue;
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (distance < bestDistance) [best, bestDistance] = [candidate, distance];
  }
  return best;
}

/** `did you mean "x"?`, or the list of what there is when nothing is close and the list is short. */
export function suggestion(word: string, candidates: Iterable<string>, what = 'known'): string {
  const all = [...candidates];
  const close = nearest(word, all);
  if (close !== undefined) return `did you mean "${close}"?`;
  if (all.length === 0) return what === 'known' ? 'there are none' : `there are no ${what}`;
  const shown = all.slice(0, 12).join(', ');
  return all.length > 12 ? `${what}: ${shown}, … (${all.length} in all)` : `${what}: ${shown}`;
}

/** Optimal string alignment: a swap of neighbours counts once, because that is how people mistype. */
function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let previous = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const cost = a[i - 1] === b[j - 1] ? 0 : 1;
      row[j] = Math.min(row[j - 1]! + 1, previous[j]! + 1, previous[j - 1]! + cost);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        row[j] = Math.min(row[j]!, before[j - 2]! + 1);
    }
    [before, previous] = [previous, row];
  }
  return previous[b.length]!;
}
