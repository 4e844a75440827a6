// SPIFFE-ID §2: lower-case trust domain, path segments of letters, digits, `.`, `-`, `_`, none of them empty, `.` or `..`.
// An OIDC issuer's mapping may also give a workload without a scheme, of the same segments.
const trustDomain = '[a-z0-9._-]{1,255}';
const segment = '(?!\\.{1,2}(?:/|$))[A-Za-z0-9._-]+';
const scheme = 'spiffe://';
const workloadId = new RegExp(`^(?:${scheme}${trustDomain}/)?${segment}(?:/${segment})*$`);
const trustDomainOf = new RegExp(`^${scheme}(${trustDomain})/`);

export const maxWorkloadLength = 2048;
export const workloadPatternHint = 'write spiffe://<trust domain>/<path>, or end it in /* to cover everything below';

export function isWorkload(text: string): boolean {
  return text.length <= maxWorkloadLength && workloadId.test(text);
}

/** An exact workload, or one with a trailing `/*` that covers one or more whole segments. */
export function isWorkloadPattern(text: string): boolean {
  return text.endsWith('/*') ? isWorkload(`${text.slice(0, -1)}x`) : isWorkload(text);
}

/** Undefined for a workload without a scheme. */
export function trustDomainOfPattern(text: string): string | undefined {
  return trustDomainOf.exec(text)?.[1];
}

/**
 * Finds what is registered for a workload: exact entries by one look-up, patterns by one look-up per path segment,
 * however many patterns there are. Results are memoised, because it is asked on every call; the memo is bounded, because
 * the workloads are the callers'.
 */
export function workloadIndex<T>(
  entries: Iterable<readonly [pattern: string, value: T]>,
  memoLimit = 10_000,
): (workload: string) => ReadonlySet<T> {
  const exact = new Map<string, Set<T>>();
  const prefixes = new Map<string, Set<T>>();
  for (const [pattern, value] of entries) {
    const [map, key] = pattern.endsWith('/*') ? [prefixes, pattern.slice(0, -1)] : [exact, pattern];
    const values = map.get(key);
    if (values === undefined) map.set(key, new Set([value]));
    else values.add(value);
  }

  const find = (workload: string): ReadonlySet<T> => {
    const found = new Set(exact.get(workload));
    // A workload that is not well formed is covered by no pattern: `/agent/../operator` is nobody's agent.
    if (prefixes.size === 0 || !isWorkload(workload)) return found;
    const start = workload.startsWith(scheme) ? scheme.length : 0;
    for (let slash = workload.indexOf('/', start); slash !== -1; slash = workload.indexOf('/', slash + 1)) {
      for (const value of prefixes.get(workload.slice(0, slash + 1)) ?? []) found.add(value);
    }
    return found;
  };

  const memo = new Map<string, ReadonlySet<T>>();
  return (workload) => {
    const known = memo.get(workload);
    if (known !== undefined) return known;
    const found = find(workload);
    if (memo.size >= memoLimit) memo.delete(memo.keys().next().value!);
    if (workload.length <= maxWorkloadLength) memo.set(workload, found);
    return found;
  };
}
