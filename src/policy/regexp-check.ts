const maxPatternLength = 256;
const maxRepeats = 3;
const maxWays = 64;

/**
 * Why a regular expression may not be used. It runs on a backtracking engine, on text that a caller chose, so what can
 * make it slow is refused: references back, look-around, a repeated group that repeats or chooses inside (exponential),
 * and more alternatives in a row or repeats than a short text (task contexts are bounded) can bear.
 */
export function regexpFault(pattern: string): string | undefined {
  if (pattern.length > maxPatternLength) return `the pattern is longer than ${maxPatternLength} characters`;
  try {
    new RegExp(pattern);
  } catch {
    return 'the pattern is not a regular expression';
  }

  // A pattern that may match anywhere is tried from everywhere, which costs as much as one repeat more.
  let repeats = pattern.startsWith('^') ? 0 : 1;
  let ways = 1;
  const groups = [{ varies: false, branches: 1 }];
  let closed: { varies: boolean } | undefined;
  for (let i = 0; i < pattern.length; i++) {
    const before = closed;
    closed = undefined;
    const group = groups.at(-1)!;
    const quantifier = /^(?:[*+?]|\{\d+(,?)\d*\})\??/.exec(pattern.slice(i));
    if (quantifier !== null) {
      const text = quantifier[0];
      const fixed = text.startsWith('{') && quantifier[1] === '';
      if (before?.varies === true && !text.startsWith('?')) {
        return 'the pattern repeats a group that itself repeats or chooses';
      }
      if (text.startsWith('?')) ways *= 2;
      else if (!fixed) repeats++;
      if (!fixed) group.varies = true;
      i += text.length - 1;
      continue;
    }
    switch (pattern.charAt(i)) {
      case '\\':
        if (/[1-9k]/.test(pattern[i + 1] ?? '')) return 'the pattern refers back to a group';
        i++;
        break;
      case '[':
        i = classEnd(pattern, i);
        break;
      case '(':
        if (pattern[i + 1] === '?') {
          if (pattern[i + 2] !== ':') return 'the pattern uses a group other than ( ) and (?: )';
          i += 2;
        }
        groups.push({ varies: false, branches: 1 });
        break;
      case ')':
        closed = groups.pop()!;
        ways *= group.branches;
        groups.at(-1)!.varies ||= closed.varies;
        break;
      case '|':
        group.branches++;
        group.varies = true;
        // `^a|b` is anchored on one side only.
        if (groups.length === 1) repeats = Math.max(repeats, 1);
        break;
    }
  }
  ways *= groups[0]!.branches;
  if (repeats > maxRepeats) return `the pattern repeats in too many places (limit ${maxRepeats}; start it with ^)`;
  return ways > maxWays ? 'the pattern has too many alternatives' : undefined;
}

function classEnd(pattern: string, start: number): number {
  for (let i = start + 1; i < pattern.length; i++) {
    if (pattern[i] === '\\') i++;
    else if (pattern[i] === ']') return i;
  }
  return pattern.length;
}
