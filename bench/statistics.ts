import type { SliceResult } from './protocol.ts';

/** All slices of one scenario at one concurrency. */
export interface Sample {
  slices: { result: SliceResult; brokerCpu: number }[];
  rssBytes: number;
}

export interface Measured {
  calls: number;
  errors: number;
  messages: string[];
  seconds: number;
  /** Operations per second: the median of the slices, which one disturbed slice does not move. */
  rate: number;
  p50: number;
  p99: number;
  p999: number;
  rssBytes: number;
  brokerCpuPer1000: number;
  loadCpuPer1000: number;
}

export function summarise({ slices, rssBytes }: Sample): Measured {
  const latencies = Float64Array.from(slices.flatMap(({ result }) => [...result.latencies])).sort();
  const calls = latencies.length;
  const total = (value: (slice: Sample['slices'][number]) => number) =>
    slices.reduce((sum, slice) => sum + value(slice), 0);
  return {
    calls,
    errors: total(({ result }) => result.errors),
    messages: slices.flatMap(({ result }) => result.messages).slice(0, 5),
    seconds: total(({ result }) => result.elapsedMs) / 1_000,
    rate: median(slices.map(({ result }) => (result.latencies.length / result.elapsedMs) * 1_000)),
    p50: quantile(latencies, 0.5),
    p99: quantile(latencies, 0.99),
    p999: quantile(latencies, 0.999),
    rssBytes,
    brokerCpuPer1000: (total((slice) => slice.brokerCpu) / calls) * 1_000,
    loadCpuPer1000: (total(({ result }) => result.cpu) / calls) * 1_000,
  };
}

/** The smallest value that at least `q` of the values do not exceed. */
export function quantile(sorted: Float64Array, q: number): number {
  return sorted[Math.max(0, Math.ceil(sorted.length * q) - 1)] ?? NaN;
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
