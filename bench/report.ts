import type { Measured } from './statistics.ts';

export interface Point extends Measured {
  scenario: string;
  variant: string | undefined;
  concurrency: number;
  /** Open leases that were there beforehand, where that is what is compared. */
  openLeases: number | undefined;
  against: Comparison;
}

/** To the same run's references at the same concurrency. */
export interface Comparison {
  echoRate: number;
  commitRate: number;
  /** p50 over (echo p50 + commit p50). */
  p50: number;
  /** Rate over that of the bare statements. */
  bareRate: number | undefined;
  /** The same for Vault asked directly; and what p50 is above it, in milliseconds. */
  directRate: number | undefined;
  directP50: number | undefined;
  /** Median over the rounds of this rate over the same round's rate with the fewest open leases. */
  fewestLeasesRate: number | undefined;
}

export interface Target {
  target: string;
  wanted: string;
  got: number;
  met: boolean;
}

const round = (value: number, digits: number) => (Number.isFinite(value) ? Number(value.toFixed(digits)) : null);
const megabytes = (bytes: number) => bytes / 1_048_576;

export function pointJson(point: Point): string {
  const { against } = point;
  return JSON.stringify({
    scenario: point.scenario,
    ...(point.variant === undefined ? {} : { variant: point.variant }),
    concurrency: point.concurrency,
    ...(point.openLeases === undefined ? {} : { open_leases: point.openLeases }),
    seconds: round(point.seconds, 2),
    calls: point.calls,
    errors: point.errors,
    ...(point.messages.length === 0 ? {} : { messages: point.messages }),
    rate: round(point.rate, 1),
    p50_ms: round(point.p50, 3),
    p99_ms: round(point.p99, 3),
    p999_ms: round(point.p999, 3),
    broker_rss_mb: round(megabytes(point.rssBytes), 1),
    broker_cpu_s_per_1000: round(point.brokerCpuPer1000, 4),
    load_cpu_s_per_1000: round(point.loadCpuPer1000, 4),
    rate_to_echo: round(against.echoRate, 3),
    rate_to_commit: round(against.commitRate, 3),
    p50_to_echo_plus_commit: round(against.p50, 3),
    ...(against.bareRate === undefined ? {} : { rate_to_bare: round(against.bareRate, 3) }),
    ...(against.directRate === undefined ? {} : { rate_to_direct: round(against.directRate, 3) }),
    ...(against.directP50 === undefined ? {} : { p50_above_direct_ms: round(against.directP50, 3) }),
    ...(against.fewestLeasesRate === undefined
      ? {}
      : { cost_to_fewest_leases: round(1 / against.fewestLeasesRate, 3) }),
  });
}

export function table(points: readonly Point[]): string {
  const head = [
    'scenario',
    'flight',
    'rate/s',
    'p50 ms',
    'p99',
    'p99.9',
    'errors',
    'RSS MB',
    'CPU s/1k',
    '/echo',
    '/commit',
    'p50/(e+c)',
    'note',
  ];
  const rows = points.map((point) => [
    point.variant === undefined ? point.scenario : `${point.scenario} (${point.variant})`,
    String(point.concurrency),
    point.rate.toFixed(0),
    point.p50.toFixed(2),
    point.p99.toFixed(2),
    point.p999.toFixed(2),
    String(point.errors),
    megabytes(point.rssBytes).toFixed(0),
    point.brokerCpuPer1000.toFixed(3),
    point.against.echoRate.toFixed(2),
    point.against.commitRate.toFixed(2),
    point.against.p50.toFixed(2),
    note(point),
  ]);
  const widths = head.map((title, column) => Math.max(title.length, ...rows.map((row) => row[column]!.length)));
  return [head, ...rows]
    .map((row) =>
      row
        .map((cell, column) =>
          column === 0 || column === row.length - 1 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!),
        )
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

function note({ openLeases, against }: Point): string {
  return [
    openLeases === undefined ? '' : `${openLeases} open leases`,
    against.bareRate === undefined ? '' : `${against.bareRate.toFixed(2)} of bare`,
    against.directRate === undefined ? '' : `${against.directRate.toFixed(2)} of direct`,
    against.directP50 === undefined ? '' : `p50 + ${against.directP50.toFixed(2)} ms`,
    against.fewestLeasesRate === undefined ? '' : `cost ×${(1 / against.fewestLeasesRate).toFixed(2)}`,
  ]
    .filter((part) => part !== '')
    .join(', ');
}

/** What the project asks of itself, judged on the points that were measured. */
export function targets(points: readonly Point[]): Target[] {
  const found: Target[] = [];
  const least = (target: string, got: number, floor: number) =>
    found.push({ target, wanted: `≥ ${floor.toFixed(2)}`, got, met: got >= floor });
  const most = (target: string, got: number, ceiling: number) =>
    found.push({ target, wanted: `≤ ${ceiling}`, got, met: got <= ceiling });
  for (const point of points) {
    const { scenario, variant, concurrency, against, openLeases } = point;
    if (scenario === 'issue-jwt' && openLeases === undefined) {
      if (concurrency === 64) least('issue-jwt at 64: rate / echo', against.echoRate, 1 / 3);
      if (concurrency === 1) most('issue-jwt at 1: p50 / (echo + commit p50)', against.p50, 2);
    }
    if (scenario === 'issue-postgres' && variant === undefined && against.bareRate !== undefined) {
      least(`issue-postgres at ${concurrency}: rate / bare`, against.bareRate, 0.8);
    }
    if (against.directRate !== undefined)
      least(`issue-vault at ${concurrency}: rate / direct`, against.directRate, 0.9);
    // With more in flight the latency is what the rate leaves, for the direct calls as well.
    if (against.directP50 !== undefined && concurrency === 1) {
      most('issue-vault at 1: p50 above direct, ms', against.directP50, 3);
    }
    if (against.fewestLeasesRate !== undefined) {
      most(`issue-jwt at ${concurrency}, ${openLeases} open leases: cost`, 1 / against.fewestLeasesRate, 1.2);
    }
  }
  if (points.length > 0) most('broker RSS, MB', megabytes(Math.max(...points.map((point) => point.rssBytes))), 200);
  return found;
}
